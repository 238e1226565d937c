"""Keep torchaudio importable where its native extension does not load.

SpeechBrain and transformers' audio models import torchaudio, and need only its Python part. Its wheels are built for
one kind of torch (CPU, or one version of CUDA); next to another kind the extension fails to load, and with it
`import torchaudio`. With the finder of this module in place torchaudio then behaves as if it had been built without
its extension. A torchaudio that loads is left as it is.
"""

import logging
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from types import ModuleType
from typing import Any, NoReturn

_EXTENSION = "torchaudio._extension"  # the package of torchaudio that loads its libraries

logger = logging.getLogger(__name__)


def install() -> None:
    """Put the finder in place; `import audiolm_lite` does it. A second call changes nothing.

    Examples
    --------
    >>> before = list(sys.meta_path)  # `import audiolm_lite` has put the finder in place
    >>> install()
    >>> sys.meta_path == before
    True
    """
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())


class _Finder(MetaPathFinder):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _EXTENSION:
            return None
        spec = PathFinder.find_spec(fullname, path, target)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(spec.loader.name, spec.loader.path)
        return spec


class _Loader(SourceFileLoader):
    def exec_module(self, module: ModuleType) -> None:
        """Run torchaudio's own module; where that fails, complete it as torchaudio does without an extension."""
        try:
            super().exec_module(module)
        except (ImportError, OSError, RuntimeError) as error:  # RuntimeError: built for another version of CUDA
            logger.debug("torchaudio's native extension does not load, using its Python part only: %s", error)
            vars(module).update(
                _IS_TORCHAUDIO_EXT_AVAILABLE=False,
                _IS_ALIGN_AVAILABLE=False,
                _check_cuda_version=lambda: None,
                fail_if_no_align=_fail_if_no_align,
            )


def _fail_if_no_align(function: Callable[..., Any]) -> Callable[..., NoReturn]:
    """Decorate a function of torchaudio that needs the extension: calling it raises RuntimeError."""

    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(
            f"torchaudio.functional.{function.__name__} needs torchaudio's native extension, which does not load here. "
            "Install a torchaudio built for the same kind of torch (CPU or the same version of CUDA)."
        )

    return fail
