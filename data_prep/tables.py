"""Plain-text tables for the terminal."""

from collections.abc import Sequence
from typing import Any


def format_table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Format a table with aligned columns: numbers to the right, text to the left; None is blank.

    Parameters
    ----------
    header : sequence of str
        Names of the columns.
    rows : sequence of sequences
        Cells; floats have two decimals.

    Returns
    -------
    str
        The lines, without a final newline.

    Examples
    --------
    >>> print(format_table(["split", "hours"], [["train", 12.5], ["test", 1.0]]))
    split  hours
    train  12.50
    test    1.00
    """
    cells = [[_shown(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(header, *cells)]
    right = [all(isinstance(cell, int | float | None) for cell in column) for column in zip(*rows)] or [False] * len(
        widths
    )
    aligned = [
        "  ".join(cell.rjust(width) if number else cell.ljust(width) for cell, width, number in zip(row, widths, right))
        for row in [header, *cells]
    ]
    return "\n".join(line.rstrip() for line in aligned)


def _shown(cell: Any) -> str:
    if cell is None:
        return ""
    return f"{cell:,.2f}" if isinstance(cell, float) else f"{cell:,}" if isinstance(cell, int) else str(cell)
