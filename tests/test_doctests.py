"""The examples in docstrings give what they show, and every public function has one or a reason to have none."""

import ast
import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = [
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
    for package in ("audiolm_lite", "data_prep")
    for path in sorted((ROOT / package).rglob("*.py"))
    if ">>> " in path.read_text(encoding="utf-8")
]


@pytest.mark.parametrize("name", MODULES)
def test_examples_of(name, tmp_path_factory, monkeypatch):
    """Every docstring gets an empty folder: the current one, also named by `getfixture("tmp_path")`."""
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    for examples in doctest.DocTestFinder().find(importlib.import_module(name)):
        folder = tmp_path_factory.mktemp("examples")
        monkeypatch.chdir(folder)
        examples.globs["getfixture"] = {"tmp_path": folder}.__getitem__
        runner.run(examples)
    assert runner.tries > 0
    assert runner.failures == 0, "see the captured output"


def test_every_public_function_has_an_example():
    """Functions of modules; those in no_example.txt need a corpus, weights, several processes or a device."""
    lines = (ROOT / "tests/no_example.txt").read_text(encoding="utf-8").splitlines()[1:]
    excepted = dict(line.split(": ", 1) for line in lines)
    without = set()
    for package in ("audiolm_lite", "data_prep"):
        for path in (ROOT / package).rglob("*.py"):
            module = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                public = isinstance(node, ast.FunctionDef) and not node.name.startswith("_")
                if public and ">>> " not in (ast.get_docstring(node) or ""):
                    without.add(f"{module}.{node.name}")
    assert without == set(excepted), "write an example, or a reason into tests/no_example.txt; delete outdated lines"
    assert all(excepted.values())
