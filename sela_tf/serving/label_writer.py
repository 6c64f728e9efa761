"""A writer of files of labels (Parquet, CSV or npz), block by block and atomically."""

from __future__ import annotations

import contextlib
import pathlib
import types
from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from sela_tf.data.csv_rows import neutral
from sela_tf.files.archives import write_npz
from sela_tf.files.atomic import whole_file

Column = np.ndarray | Mapping[str, np.ndarray]
"""A column of a block of B rows: an array [B], [B, D] of vectors, or such arrays by the names of the fields of a struct."""

Columns = Mapping[str, Column]
"""The columns of a block by their names."""


class LabelWriter:
    """A writer of blocks of columns, the same columns in every block.

    It is a context manager: the file appears at the end of the context. After an error the file is as before, or absent; the end of the
    context raises StorageError where the disk was full.

    A column of vectors `embedding` is one list column in Parquet, columns `embedding_0`, `embedding_1`, … in CSV, and a matrix in npz. An
    npz file is kept in memory until the end. Structs are for Parquet alone.

    Args:
        path: path of the file; its suffix is the format.
    """

    def __init__(self, path: pathlib.Path):
        self.path = path
        self._writer: pa.parquet.ParquetWriter | pa.csv.CSVWriter | None = None
        self._blocks: list[Columns] = []

    def __enter__(self) -> LabelWriter:
        with contextlib.ExitStack() as stack:
            self._unfinished = stack.enter_context(whole_file(self.path))
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def write(self, columns: Columns) -> None:
        """Writes one block.

        Raises:
            OSError: the file cannot be written; the end of the context makes a StorageError of it.
        """
        if self.path.suffix == ".npz":
            self._blocks.append(columns)
            return
        batch = _record_batch(columns, flat=self.path.suffix == ".csv")
        if self._writer is None:
            kind = pa.csv.CSVWriter if self.path.suffix == ".csv" else pa.parquet.ParquetWriter
            self._writer = kind(str(self._unfinished), batch.schema)
        self._writer.write_batch(batch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def _finish(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Completes the unfinished file, unless an exception has ended the context."""
        if self._writer is not None:
            self._writer.close()
        if kind is None and self._blocks:
            arrays = {name: np.concatenate([block[name] for block in self._blocks]) for name in self._blocks[0]}
            with self._unfinished.open("wb") as file:
                write_npz(file, arrays)


def _record_batch(columns: Columns, *, flat: bool) -> pa.RecordBatch:
    """Returns a block as Arrow; `flat`, for CSV, gives each value of a vector its own column and keeps text from being computed."""
    arrays: dict[str, pa.Array] = {}
    for name, values in columns.items():
        if flat and isinstance(values, np.ndarray) and values.ndim == 2:
            arrays |= {f"{name}_{i}": pa.array(np.ascontiguousarray(values[:, i])) for i in range(values.shape[1])}
        elif flat and isinstance(values, np.ndarray) and values.dtype.kind in "UO":
            texts = [neutral(value) if isinstance(value, str) else value for value in values.tolist()]
            arrays[name] = pa.array(texts, pa.string() if values.dtype.kind == "U" else None)
        else:
            arrays[name] = _array(values)
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def _array(values: Column) -> pa.Array:
    """Returns a column as Arrow. An array of objects holds bytes or text, and None for what is missing."""
    if isinstance(values, Mapping):
        return pa.StructArray.from_arrays([_array(field) for field in values.values()], names=list(values))
    if values.ndim == 2:
        return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
    # NaN stands for what is not known, which files express by a missing value.
    return pa.array(values, mask=np.isnan(values) if values.dtype.kind == "f" else None)
