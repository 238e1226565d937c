"""Stand-in for torchaudio's native extension beside a CPU-only torch.

SpeechBrain imports torchaudio in most of its modules. The torchaudio wheel on the Python package index links CUDA
libraries, which a CPU build of torch does not bring, so `import torchaudio` ends in an OSError there. Only
torchaudio's Python part is needed; with this module in place it believes that it was built without its extension.
"""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import torch

_NAME = "torchaudio._extension"


def install() -> None:
    """Register the stand-in, where torch has no CUDA and torchaudio is not loaded yet.

    Must run before the first import of torchaudio or SpeechBrain; importing `audiolm_lite` does it. A second call
    changes nothing.
    """
    if torch.version.cuda is None and _NAME not in sys.modules:
        sys.modules[_NAME] = _extension()


def _extension() -> ModuleType:
    module = ModuleType(_NAME, "Stand-in made by audiolm_lite.torchaudio_stub.")
    module._IS_TORCHAUDIO_EXT_AVAILABLE = False
    module._IS_ALIGN_AVAILABLE = False
    module._check_cuda_version = lambda: None
    module.fail_if_no_align = _fail_if_no_align
    return module


def _fail_if_no_align(function: Callable) -> Callable:
    """Decorator: the decorated function of torchaudio says on use that it needs the extension."""

    def fail(*args: Any, **kwargs: Any) -> None:
        raise RuntimeError(f"torchaudio.{function.__name__} needs torchaudio's native extension, built with CUDA.")

    return fail
