"""A stand-in for torchaudio's native part, where that part cannot load.

speechbrain and transformers import torchaudio wherever it is installed, and its wheel links CUDA libraries, so the
import fails beside a CPU-only torch. Only torchaudio's Python part is needed here (nothing reads or resamples audio
through it), so a module that says "no extension" takes the place of the native loader.
"""

import importlib.util
import sys
import types

_NAME = "torchaudio._extension"


def _unavailable(*args, **kwargs):
    raise RuntimeError("torchaudio's native part is not loaded beside a CPU-only torch")


def install() -> bool:
    """Register the stand-in before torchaudio is first imported.

    Returns
    -------
    bool
        True when the stand-in is in place; False where it is not needed (torch built with CUDA, no torchaudio, or
        torchaudio already imported).
    """
    import torch

    if _NAME in sys.modules:
        return getattr(sys.modules[_NAME], "IS_STAND_IN", False)
    if torch.version.cuda is not None or importlib.util.find_spec("torchaudio") is None:
        return False
    module = types.ModuleType(_NAME)
    module.IS_STAND_IN = True
    module._IS_TORCHAUDIO_EXT_AVAILABLE = False
    module._IS_ALIGN_AVAILABLE = False
    module._check_cuda_version = lambda: None
    # torchaudio uses it as a decorator on functions that need the native forced aligner.
    module.fail_if_no_align = lambda function: _unavailable
    sys.modules[_NAME] = module
    return True
