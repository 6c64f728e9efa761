"""CSV files: the rows that people and table software write, with the numbers of their lines; and text that no spreadsheet takes for a formula.

A spreadsheet computes a cell that begins with =, +, - or @, so that a file name could run commands. Such text is written with an apostrophe
before it, as OWASP advises, and read without. Text that begins with apostrophes and such a character gets one more, so that any text comes back.
"""

from __future__ import annotations

import csv
import os
import pathlib
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple

from sela_tf.data.errors import SourceError

_DELIMITERS = (",", ";", "\t")
"""The characters between cells: RFC 4180's, and those that table software writes where the comma is the decimal sign."""
_FORMULA = re.compile("'*[=+\\-@\t\r\n\uff1d\uff0b\uff0d\uff20]")
"""The beginning of a text that a spreadsheet takes for a formula, the wide signs of some languages included; with apostrophes, or without."""
_QUOTED = re.compile(r"""[",;\t\r\n]|^\s|\s$""")
"""A cell that stands in quotes: it holds a character that parts cells in some language, or a blank at an end."""


class CsvRow(NamedTuple):
    """A row of a CSV file."""

    number: int
    """The number of the line on which the row begins, from 1."""
    cells: list[str]
    """The text of the cells, without the apostrophe of `neutral`."""


class CsvRows(NamedTuple):
    """The rows of a CSV file."""

    header: tuple[str, ...]
    """The cells of the first row, without blanks around them."""
    rows: list[CsvRow]
    """All other rows that are not blank, each with as many cells as the header."""


def read_csv(path: str | os.PathLike[str], headers: Collection[tuple[str, ...]], *, setting: str) -> CsvRows:
    """Reads a CSV file (RFC 4180, UTF-8 with or without byte order mark). Cells may be parted by commas, semicolons or tabs.

    Args:
        path: The file.
        headers: The first rows that it may have.
        setting: The name of the file in messages, such as "`known_labels=known.csv`".

    Raises:
        SourceError: The file cannot be read, has another first row, or rows of another width.
    """
    try:
        with pathlib.Path(path).expanduser().open(newline="", encoding="utf-8-sig") as file:
            first = file.readline()
            delimiter = next((each for each in _DELIMITERS if _cells(first, each) in headers), ",")
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter)
            rows, begins = [], 1
            for cells in reader:
                rows.append(CsvRow(begins, list(map(_original, cells))))
                # A cell in quotes may hold line breaks.
                begins = reader.line_num + 1
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        way_out = ": save it as CSV UTF-8" if isinstance(error, UnicodeDecodeError) else ""
        raise SourceError(f"{setting} cannot be read: {error}{way_out}") from error
    header = _cells(first, delimiter)
    if header not in headers:
        wanted = " or ".join(",".join(each) for each in headers)
        raise SourceError(f"the first line of {setting} must be {wanted}. Received: {','.join(header)!r}")
    found = [row for row in rows[1:] if any(cell.strip() for cell in row.cells)]
    for row in found:
        if len(row.cells) != len(header):
            raise SourceError(
                f"line {row.number} of {setting} must have {len(header)} columns. Received: {delimiter.join(row.cells)!r}"
            )
    return CsvRows(header, found)


def csv_text(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns the text of a CSV file of text, which `read_csv` reads back and no spreadsheet computes."""

    def cell(text: str) -> str:
        text = neutral(text)
        return '"{}"'.format(text.replace('"', '""')) if _QUOTED.search(text) else text

    return "".join(",".join(map(cell, row)) + "\n" for row in (header, *rows))


def neutral(text: str) -> str:
    """Returns a text for a cell, after an apostrophe where a spreadsheet would take it for a formula."""
    return f"'{text}" if _FORMULA.match(text) else text


def _original(cell: str) -> str:
    """Returns the text that `neutral` made a cell of."""
    return cell[1:] if cell.startswith("'") and _FORMULA.match(cell) else cell


def original_names(column: Sequence[str]) -> list[str]:
    """Returns the texts of a column that another reader has read."""
    return list(map(_original, column))


def _cells(line: str, delimiter: str) -> tuple[str, ...]:
    """Returns the cells of a line, without blanks around them."""
    return tuple(cell.strip() for cells in csv.reader([line], delimiter=delimiter) for cell in cells)


def whole_number(text: str) -> int | None:
    """Returns the whole number written as 3, 3.0 or 3.000e+00, as table software does; None for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 and "_" not in text else None
