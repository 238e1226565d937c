"""The examples in docstrings give what they show."""

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
