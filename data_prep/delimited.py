"""Tables of text with a header line: CSV, TSV and their like, row by row, with the line of every fault."""

import csv
import gzip
import zlib
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from data_prep.formats import FormatError

_DELIMITERS = "\t,;|"
_MARKS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


class Table:
    """A table whose first line names the columns.

    Cells may be quoted as in CSV. In tables with tabs, quotes are text, except in a cell that is quoted because it has
    quotes itself, which are then doubled.

    Parameters
    ----------
    path : Path
        UTF-8 text with or without a byte order mark; one named .gz is decompressed.
    delimiter : str, optional
        Separator of the columns; by default the tab, comma, semicolon or vertical bar that the header has most of.

    Attributes
    ----------
    columns : list of str
        Names of the columns; an empty name is that of a column which is not read, such as the row number of pandas.

    Raises
    ------
    FormatError
        The file cannot be read or is not UTF-8, or has no header or two columns of one name.

    Examples
    --------
    >>> file = getfixture("tmp_path") / "list.csv"
    >>> _ = file.write_text('path;text\\n1.wav;"yes; no"\\n\\n2.wav\\n')
    >>> table = Table(file)
    >>> table.columns
    ['path', 'text']
    >>> (_, row), (line, fault) = table.rows()
    >>> row, line, str(fault)
    ({'path': '1.wav', 'text': 'yes; no'}, 4, '1 cells, and the header has 2; check quotes and separators')
    """

    def __init__(self, path: Path, delimiter: str | None = None):
        self.path = path
        header = next(self._lines(), "").rstrip("\r\n")
        if not header.strip() or not _is_utf8(header):
            raise FormatError(f"{path}, line 1: no header in UTF-8; the first line must name the columns")
        self.delimiter = delimiter or max(_DELIMITERS, key=header.count)
        self.columns = [name.strip() for name in self._cells(header)]
        repeated = [name for name, count in Counter(self.columns).items() if count > 1 and name]
        if repeated:
            raise FormatError(f"{path}, line 1: column {repeated[0]!r} is given twice; rename one")

    def rows(self) -> Iterator[tuple[int, dict[str, str] | FormatError]]:
        """Yield the line of each row's start, from 2, and its cells by column, or the error that a bad row is."""
        lines = self._lines()
        next(lines)
        if self.delimiter == "\t":
            for number, line in enumerate(lines, start=2):
                if line.strip():
                    yield number, self._row(self._cells(line.rstrip("\r\n")))
            return
        reader = csv.reader(lines, delimiter=self.delimiter, strict=True)
        while True:
            number = reader.line_num + 2
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                if "unexpected end" in str(error) or "field larger" in str(error):
                    raise FormatError(f"{self.path}, line {number}: a quote is opened and not closed") from error
                yield number, FormatError(f"not a row of a table ({error}); check its quotes")
                continue
            if any(cell.strip() for cell in cells):
                yield number, self._row(cells)

    def _row(self, cells: list[str]) -> dict[str, str] | FormatError:
        if len(cells) != len(self.columns):
            return FormatError(
                f"{len(cells)} cells, and the header has {len(self.columns)}; check quotes and separators"
            )
        row = {name: cell.strip() for name, cell in zip(self.columns, cells) if name}
        for name, cell in row.items():
            if not _is_utf8(cell):
                return FormatError(f'field "{name}": not UTF-8; convert the file, for example with iconv -t UTF-8')
        return row

    def _cells(self, line: str) -> list[str]:
        if self.delimiter == "\t":
            return [_unquoted(cell.strip()) for cell in line.split("\t")]
        return next(csv.reader([line], delimiter=self.delimiter))

    def _lines(self) -> Iterator[str]:
        """Lines with their ends; bytes that are not UTF-8 become surrogates."""
        number = 0
        try:
            with gzip.open(self.path) if self.path.suffix == ".gz" else self.path.open("rb") as file:
                for number, line in enumerate(file, start=1):
                    if number == 1 and (encoding := _MARKS.get(line[:2])):
                        raise FormatError(
                            f"{self.path}: the encoding is {encoding}; convert it: iconv -f {encoding} -t UTF-8"
                        )
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8", errors="surrogateescape")
        except (OSError, EOFError, zlib.error) as error:
            raise FormatError(
                f"{self.path}: not readable after line {number} ({error}); check the path, or download it again"
            ) from error


def _unquoted(cell: str) -> str:
    inner = cell[1:-1]
    quoted = len(cell) > 2 and cell[0] == cell[-1] == '"' and '""' in inner and '"' not in inner.replace('""', "")
    return inner.replace('""', '"') if quoted else cell


def _is_utf8(text: str) -> bool:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
