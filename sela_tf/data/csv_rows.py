"""The rows of CSV files that people and table software write, with the numbers of their lines."""

from __future__ import annotations

import csv
import os
import pathlib
from collections.abc import Collection
from typing import NamedTuple

from sela_tf.data.errors import SourceError

_DELIMITERS = (",", ";", "\t")
"""The characters between cells: RFC 4180's, and those that table software writes where the comma is the decimal sign."""


class CsvRow(NamedTuple):
    """A row of a CSV file."""

    number: int
    """The number of the line on which the row begins, from 1."""
    cells: list[str]


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
                rows.append(CsvRow(begins, cells))
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
