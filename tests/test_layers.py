"""Imports between the packages of audiolm_lite are those that the table in CONTRIBUTING.md allows."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "audiolm_lite"
GUIDE = ROOT / "CONTRIBUTING.md"
HEADER = ["package", "contents", "may import"]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def packages_in(cell: str) -> list[str]:
    """Names in backticks without folder and ending: `audiolm_lite/storage/` is storage, `cli.py` is cli."""
    return [name.removeprefix("audiolm_lite/").strip("/").removesuffix(".py") for name in re.findall("`([^`]+)`", cell)]


def read_table(text: str) -> dict[str, list[str]]:
    """Package -> packages it may import, in the order of the table; a row without a package continues the one above."""
    lines = iter(text.splitlines())
    if not any(cells(line) == HEADER for line in lines):  # leaves the iterator behind the header
        raise ValueError(f"CONTRIBUTING.md has no table with the header | {' | '.join(HEADER)} |")
    next(lines)  # | --- | --- | --- |
    table: dict[str, list[str]] = {}
    names: list[str] = []
    for line in lines:
        if not line.startswith("|"):
            break
        first, _, allowed = cells(line)
        names = packages_in(first) or names
        for name in names:
            table.setdefault(name, []).extend(packages_in(allowed))
    return table


def imported_packages(source: str) -> dict[str, int]:
    """Packages of audiolm_lite that this code imports, also inside functions, and the first line of each."""
    imports: dict[str, int] = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module == "audiolm_lite":
            modules = [f"audiolm_lite.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative import: write the full name of the module"
            modules = [node.module or ""]
        else:
            continue
        for module in modules:
            parent, _, rest = module.partition(".")
            if parent == "audiolm_lite" and rest:
                imports.setdefault(rest.split(".")[0], node.lineno)
    return imports


PACKAGES = sorted(
    {path.name for path in LIBRARY.iterdir() if (path / "__init__.py").is_file()}
    | {path.stem for path in LIBRARY.glob("*.py") if path.name != "__init__.py"}
)


@pytest.fixture(scope="module")
def table() -> dict[str, list[str]]:
    return read_table(GUIDE.read_text(encoding="utf-8"))


def test_table_lists_every_package(table):
    assert set(table) == set(PACKAGES)


def test_table_has_one_direction(table):
    """A package may import only packages above it, so no two can import each other."""
    order = list(table)
    for name, allowed in table.items():
        assert [other for other in allowed if other not in order[: order.index(name)]] == [], f"row {name}"


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_are_those_of_the_table(package, table):
    """No import is missing in the table, and the table allows no more than the code needs."""
    folder = LIBRARY / package
    needed, wrong = set(), []
    for file in sorted(folder.rglob("*.py")) if folder.is_dir() else [folder.with_suffix(".py")]:
        for other, line in imported_packages(file.read_text(encoding="utf-8")).items():
            if other in PACKAGES and other != package:
                needed.add(other)
                if other not in table[package]:
                    wrong.append(f"{file.relative_to(ROOT)}:{line} imports {other}")
    assert not wrong, "\n".join(wrong)
    assert [other for other in table[package] if other not in needed] == [], "not needed: remove it from the table"


def test_files_named_in_the_guide_exist():
    """Paths in backticks, from the root, from audiolm_lite/, or in the recipe that the guide recommends as a model."""
    paths = re.findall(r"`([\w./-]+/[\w.-]+\.(?:py|csv|sh|yaml|toml))`", GUIDE.read_text(encoding="utf-8"))
    assert len(paths) > 40
    bases = (ROOT, LIBRARY, ROOT / "recipes" / "FSD50K")
    assert [path for path in paths if not any((base / path).is_file() for base in bases)] == []


def test_every_kind_of_import_is_found():
    source = (
        "import audiolm_lite.audio.reading\n"
        "from audiolm_lite import config, AudioLM\n"
        "from audiolm_lite.data.manifest import Row\n"
        "import numpy\n"
        "def late():\n"
        "    from audiolm_lite.training import brain\n"
    )
    assert imported_packages(source) == {"audio": 1, "config": 2, "AudioLM": 2, "data": 3, "training": 6}


def test_table_is_read_by_its_header():
    text = (
        "| a | b |\n|---|---|\n| `x` | y |\n\n"
        "| package | contents | may import |\n|---|---|---|\n"
        "| `storage/` | files | - |\n"
        "| `api` | users | `storage`, |\n| | | `config` |\n"
        "| `cli.py`, `__main__.py` | command | `storage`, `api` |\n\nEnd\n"
    )
    expected = {"storage": [], "api": ["storage", "config"], "cli": ["storage", "api"], "__main__": ["storage", "api"]}
    assert read_table(text) == expected
    with pytest.raises(ValueError, match="no table with the header"):
        read_table("| package | contents |\n")
