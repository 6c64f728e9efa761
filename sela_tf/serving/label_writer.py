"""A file of labels, written block by block: Parquet, CSV or npz, there whole or not at all."""

from __future__ import annotations

import contextlib
import pathlib
import types
from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from sela_tf.files.atomic import whole_file

Columns = Mapping[str, np.ndarray]
"""Arrays [B], or [B, D] of vectors, by the names of the columns."""


class LabelWriter:
    """Takes blocks of columns, always the same ones; used as a context, in which an error leaves the old file, or none.

    Vectors are one list column in Parquet, `embedding_0` … in CSV, a matrix in npz. npz is kept in memory until the end.

    Args:
        path: its suffix is the format.
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
        """One block.

        Raises:
            OSError: it cannot be written.
        """
        if self.path.suffix == ".npz":
            self._blocks.append(columns)
            return
        batch = _record_batch(columns, flat=self.path.suffix == ".csv")
        with self._named():
            if self._writer is None:
                kind = pa.csv.CSVWriter if self.path.suffix == ".csv" else pa.parquet.ParquetWriter
                self._writer = kind(str(self._unfinished), batch.schema)
            self._writer.write_batch(batch)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: types.TracebackType | None
    ) -> None:
        with self._named():
            self._stack.__exit__(kind, error, traceback)

    def _finish(self, kind: type[BaseException] | None, *rest: object) -> None:
        """Completes the unfinished file, unless an exception has ended the context."""
        if self._writer is not None:
            self._writer.close()
        if kind is None and self._blocks:
            arrays = {name: np.concatenate([block[name] for block in self._blocks]) for name in self._blocks[0]}
            with self._unfinished.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """An error says which file it is about."""
        try:
            yield
        except OSError as error:
            raise OSError(f"{self.path} cannot be written: {error.strerror or error}") from error


def _record_batch(columns: Columns, *, flat: bool) -> pa.RecordBatch:
    arrays: dict[str, pa.Array] = {}
    for name, values in columns.items():
        if values.ndim == 1:
            # what is not known is missing, not NaN
            arrays[name] = pa.array(values, mask=np.isnan(values) if values.dtype.kind == "f" else None)
        elif flat:
            arrays |= {f"{name}_{i}": pa.array(np.ascontiguousarray(values[:, i])) for i in range(values.shape[1])}
        else:
            arrays[name] = pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(values).reshape(-1)), values.shape[1])
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
