"""Python without what Windows lacks: everything imports, and a tiny model is trained, evaluated and used."""

import json
import ntpath
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from audiolm_lite.storage import atomic, mapped_arrays, paths

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
IMPORT_ALL = """
import importlib, pkgutil, audiolm_lite, data_prep
for package in (audiolm_lite, data_prep):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)
"""


def python(*arguments: str) -> str:
    environment = {**os.environ, "PYTHONPATH": f"{HERE / 'windows'}{os.pathsep}{ROOT}", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONWARNDEFAULTENCODING": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-W", "ignore", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout


def test_everything_imports():
    python("-c", IMPORT_ALL)


def test_a_tiny_model_is_trained_evaluated_and_used(tmp_path):
    """With spawned workers, checkpoints that are replaced, and a lock that refuses a second writer."""
    python("-m", "tests.other_systems.pipeline", str(tmp_path))
    metrics = json.loads((tmp_path / "evaluation/metrics.json").read_text(encoding="utf-8"))
    assert metrics["controls"]["normal"]["sound_class"]["items"] == 4


def test_what_the_rules_forbid_is_noticed(tmp_path):
    """The rules of `windows/sitecustomize.py` hold, so the tests above can fail."""
    code = (
        "import os, sys\nfrom pathlib import Path\nfolder = Path(sys.argv[1])\n"
        "def refused(call, *arguments):\n"
        "    try: call(*arguments)\n    except (OSError, ImportError, ValueError): return True\n"
        "(folder / 'a').write_bytes(b'1'); (folder / 'b').write_bytes(b'1')\n"
        "with open(folder / 'a', 'rb') as file:\n"
        "    assert refused(os.replace, folder / 'b', folder / 'a') and refused(os.fsync, file.fileno())\n"
        "    assert refused(os.unlink, folder / 'a')\n"
        "assert refused(os.open, folder, os.O_RDONLY) and refused(os.symlink, 'a', folder / 'c')\n"
        "assert refused(open, folder / 'a:b', 'wb') and refused(__import__, 'fcntl')\n"
        "import multiprocessing, signal\nassert refused(multiprocessing.get_context, 'fork')\n"
        "assert not hasattr(os, 'pread') and not hasattr(signal, 'SIGUSR1')\n"
    )
    python("-c", code, str(tmp_path))


def test_paths_in_files_have_slashes(monkeypatch):
    monkeypatch.setattr(paths, "os", SimpleNamespace(path=ntpath, sep="\\", fspath=os.fspath))
    assert paths.relative_path(r"C:\data\wav\1.wav", r"C:\data\lists") == "../wav/1.wav"
    assert paths.relative_path(r"D:\wav\1.wav", r"C:\data\lists") == "D:/wav/1.wav"  # another drive


@pytest.mark.parametrize("code, attempts", [(32, 3), (5, 3), (2, 1)])
def test_a_file_that_another_program_has_open_is_replaced_later(tmp_path, monkeypatch, code, attempts):
    """Codes 5 and 32 are Windows' for such files; another error is raised at once."""
    calls, waits = [], []

    def busy_twice(source, target):
        calls.append(source)
        if len(calls) < 3:
            error = PermissionError("in use")
            error.winerror = code
            raise error

    monkeypatch.setattr(atomic.os, "replace", busy_twice)
    monkeypatch.setattr(atomic.time, "sleep", waits.append)
    if attempts == 1:
        with pytest.raises(PermissionError):
            atomic.move(tmp_path / "a", tmp_path / "b")
    else:
        atomic.move(tmp_path / "a", tmp_path / "b")
    assert len(calls) == attempts and len(waits) == attempts - 1


def test_bytes_are_read_at_an_offset_without_pread(tmp_path, monkeypatch):
    (tmp_path / "a").write_bytes(bytes(range(100)))
    monkeypatch.delattr(os, "pread")
    with (tmp_path / "a").open("rb") as file:
        assert file.read(2) == bytes([0, 1])
        assert mapped_arrays.read_at(file, 3, 50) == bytes([50, 51, 52]) and mapped_arrays.read_at(file, 9, 98) == b"bc"
        assert file.read(2) == bytes([2, 3])


@pytest.mark.parametrize("redirected", [True, False])
def test_text_that_the_code_page_lacks_is_printed(redirected):
    code = "from audiolm_lite.config.errors import run_command; run_command(lambda words: print('\\uc548\\ub155'))"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    if not redirected:  # a terminal keeps its code page
        environment["PYTHONIOENCODING"] = "cp1252"
    printed = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, timeout=60, check=True)
    assert printed.stdout.strip() == ("안녕".encode() if redirected else rb"\uc548\ub155")
