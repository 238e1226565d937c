"""Errors that a user can correct, how a command reports them, and the suggestion of the name that was meant."""

import difflib
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

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


def run_command(main: Callable[[list[str]], Any], argv: Sequence[str] | None = None) -> NoReturn:
    """Run a command's `main` and exit: a `UserError` is printed as one message, without a traceback.

    Parameters
    ----------
    main : callable
        Takes the arguments. Its result is the exit status where it is an integer, otherwise the status is 0.
    argv : sequence of str, optional
        The arguments; by default those of this process.

    Raises
    ------
    SystemExit
        Always; with status 1 after a `UserError`.

    Examples
    --------
    >>> def main(arguments):
    ...     raise UserError(f"{arguments[0]}: no such file")
    >>> run_command(main, ["stage_1.yaml"])
    Traceback (most recent call last):
    SystemExit: error: stage_1.yaml: no such file
    """
    try:
        status = main(list(sys.argv[1:] if argv is None else argv))
    except UserError as error:
        raise SystemExit(f"error: {error}") from error
    raise SystemExit(status if type(status) is int else 0)
