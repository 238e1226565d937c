"""The error of a wrong configuration, and its suggestion of the name that was meant."""

import difflib
from collections.abc import Iterable


class ConfigError(ValueError):
    """A configuration that cannot be followed; the message names the entry and the remedy."""


def did_you_mean(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """End of a message about an unknown name: the closest known name and the list of all known names.

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
    return f"{suggestion} Known: {', '.join(known) or 'none'}"
