"""Import the models of transformers without packages that they rarely use, which takes a sixth less time.

Whenever transformers imports any model, it imports SciPy's optimisers for object detection and torchaudio for reading
files. Here both are imported when something of them is first used.
"""

import importlib
import sys
from types import ModuleType
from typing import Any

# Modules from which transformers only takes functions that it calls later.
_DEFERRED = ("scipy.optimize", "torchaudio")


def import_transformers() -> None:
    """Import what all models of transformers have in common; without effect if that has been imported.

    Examples
    --------
    >>> import_transformers()
    >>> "transformers.modeling_utils" in sys.modules
    True
    """
    if "transformers.modeling_utils" in sys.modules:
        return
    import transformers  # noqa: F401  # light; it looks for installed packages, which stand-ins must not hide

    stand_ins = {name: _Module(name) for name in _DEFERRED if name not in sys.modules}
    sys.modules.update(stand_ins)
    try:
        importlib.import_module("transformers.modeling_layers")
    finally:
        for name, stand_in in stand_ins.items():
            if sys.modules.get(name) is stand_in:
                del sys.modules[name]


class _Module(ModuleType):
    """A module of which everything is deferred."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return _Deferred(self.__name__, name)


class _Deferred:
    """A function, or a module of them, that is imported when it is called or an attribute of it is read."""

    def __init__(self, module: str, name: str):
        self._module, self._name = module, name

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        return self._import()(*arguments, **options)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._import(), name)

    def _import(self) -> Any:
        return getattr(importlib.import_module(self._module), self._name)
