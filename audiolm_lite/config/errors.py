"""Errors that a user can correct, how a command reports them, and the suggestion of the name that was meant."""

import difflib
import io
import os
import pickle
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn

from safetensors import SafetensorError

# Set to anything but 0: a command that fails prints the traceback, as with --debug.
DEBUG_VARIABLE = "AUDIOLM_LITE_DEBUG"
_LIBRARY_ERRORS = (
    *(OSError, ValueError, TypeError, ArithmeticError, LookupError, AttributeError, RuntimeError),
    *(pickle.PickleError, SafetensorError),  # of files with weights
)
# Longer lists of names than this are not printed in a message.
_LONGEST_LIST = 20


class UserError(Exception):
    """An error that the user can correct; the message says what is wrong, where, and what to do."""


class ConfigError(UserError, ValueError):
    """A configuration that cannot be used; the message names the entry and the remedy."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """End of a message about an unknown name: the closest known name and, where they are few, all known names.

    Parameters
    ----------
    name : str
        The unknown name.
    known : iterable of str
        Every name that is allowed here.
    cutoff : float
        Least similarity of a suggestion, from 0 to 1.

    Examples
    --------
    >>> did_you_mean("lineer", ["linear", "tltr"])
    "; did you mean 'linear'? Known: linear, tltr"
    """
    known = [str(other) for other in known]
    close = difflib.get_close_matches(str(name), known, n=1, cutoff=cutoff)
    suggestion = f"; did you mean {close[0]!r}?" if close else "."
    if len(known) > _LONGEST_LIST:
        return suggestion
    return f"{suggestion} Known: {', '.join(known) or 'none'}"


@contextmanager
def errors_about(what: str) -> Iterator[None]:
    """Report what a library raises about a value of the user as `ConfigError`; a `UserError` stays as it is.

    Parameters
    ----------
    what : str
        The entry that was wrong, with its value; the beginning of the message.

    Raises
    ------
    ConfigError
        The code in the `with` block raised an `OSError`, or an error about a type, a value or a file with weights.

    Examples
    --------
    >>> with errors_about("betas [2, 3]"):
    ...     raise ValueError("Invalid beta parameter: 2")
    Traceback (most recent call last):
    audiolm_lite.config.errors.ConfigError: betas [2, 3]: Invalid beta parameter: 2
    """
    try:
        yield
    except UserError:
        raise
    except _LIBRARY_ERRORS as error:
        raise ConfigError(f"{what}: {describe(error)}") from error


def describe(error: BaseException) -> str:
    """Return an exception's message in one line.

    Examples
    --------
    >>> describe(FileNotFoundError(2, "No such file or directory", "a.wav"))
    'a.wav: No such file or directory'
    >>> describe(KeyError("stride"))
    "KeyError: 'stride'"
    """
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    text = " ".join(str(error).split())
    is_short = isinstance(error, (LookupError, AttributeError)) or not text
    return f"{type(error).__name__}: {text}" if is_short else text


def run_command(main: Callable[[list[str]], Any], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command's `main` and exit: an error that the user can correct is one message, without a traceback.

    These are `UserError`, errors of files and networks (`OSError`), and packages that are not installed. With --debug
    or the environment variable AUDIOLM_LITE_DEBUG they keep their traceback. So does any other error, because it is a
    fault of the program.

    Parameters
    ----------
    main : callable
        Takes the arguments. Its result is the exit status where it is an integer, otherwise the status is 0.
    argv : sequence of str, optional
        The arguments; by default those of this process.

    Raises
    ------
    SystemExit
        Status 1 after an error that the user can correct; 130 after Ctrl-C.

    Examples
    --------
    >>> def main(arguments):
    ...     raise UserError(f"{arguments[0]}: no such file")
    >>> run_command(main, ["stage_1.yaml"])
    Traceback (most recent call last):
    SystemExit: error: stage_1.yaml: no such file
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    _print_any_text()
    try:
        status = main(arguments)
    except (UserError, OSError, ModuleNotFoundError, KeyboardInterrupt) as error:
        if "--debug" in arguments or os.environ.get(DEBUG_VARIABLE, "0") not in ("", "0"):
            raise
        if isinstance(error, UserError):
            raise SystemExit(f"error: {error}") from error
        if isinstance(error, KeyboardInterrupt):
            print("interrupted", file=sys.stderr)
            raise SystemExit(130) from error
        message = describe(error)
        if isinstance(error, ModuleNotFoundError):
            if str(error.name).split(".")[0] in ("audiolm_lite", "data_prep"):
                raise
            message = f"the package {error.name!r} is not installed; install it with pip"
        raise SystemExit(f"error: {message} ({DEBUG_VARIABLE}=1 shows where)") from error
    raise SystemExit(status if type(status) is int else 0)


def _print_any_text() -> None:
    """Let standard output be UTF-8 where it is a file or a pipe, and escape what a terminal cannot show.

    Windows would otherwise end the command at the first letter that its code page lacks.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            redirected = not stream.isatty() and "PYTHONIOENCODING" not in os.environ
            stream.reconfigure(encoding="utf-8" if redirected else None, errors="backslashreplace")
