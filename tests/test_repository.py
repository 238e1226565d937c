"""House rules that neither linter nor formatter checks: widths of Markdown lines, lengths of source files."""

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WIDTH, LINES = 120, 400


def tracked(pattern):
    """Files of the repository, also outside of git (an unpacked archive)."""
    listed = subprocess.run(["git", "ls-files", pattern], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        return [path for path in ROOT.rglob(pattern) if ".venv" not in path.parts]
    return [ROOT / name for name in listed.stdout.splitlines()]


# Model cards of released models are generated: their tables have complete configurations.
@pytest.mark.parametrize(
    "path",
    [path for path in tracked("*.md") if "released" not in path.parts],
    ids=lambda path: str(path.relative_to(ROOT)),
)
def test_markdown_lines_fit(path):
    """A line with an address that cannot be broken is exempt."""
    lines = enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
    assert not [number for number, line in lines if len(line) > WIDTH and "://" not in line]


@pytest.mark.parametrize("package", ["audiolm_lite", "data_prep"])
def test_source_files_can_be_read_in_one_sitting(package):
    files = {path: len(path.read_text(encoding="utf-8").splitlines()) for path in (ROOT / package).rglob("*.py")}
    assert files and not {str(path.relative_to(ROOT)): n for path, n in files.items() if n > LINES}
