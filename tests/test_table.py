"""Tests of the rows that a pass reads: how they are brought to it, and what is left of the limit on threads."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import tensorflow as tf
from threadpoolctl import threadpool_info

from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.sinkhorn import sinkhorn
from sela_tf.transport.table import Table
from sela_tf.transport.threads import one_blas_thread


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, ">f4", tf.bfloat16.as_numpy_dtype])
@pytest.mark.parametrize("form", ["array", "tensor", "file", "computed"])
def test_chunks_hold_the_rows_followed_by_zeros(rng, tmp_path, form, dtype):
    values = rng.normal(size=(50, 7)).astype(dtype)
    kernel, bias = rng.normal(size=(7, 5)).astype(np.float32), rng.normal(size=5).astype(np.float32)
    expected = values.astype(np.float64)
    source = {"array": values, "tensor": tf.constant(values), "file": values}.get(form, LinearLogits(values, kernel, bias))
    if form == "file":
        np.save(tmp_path / "rows.npy", values.view(np.uint16) if dtype == tf.bfloat16.as_numpy_dtype else values)
        source = np.load(tmp_path / "rows.npy", mmap_mode="r").view(dtype)
    if form == "computed":
        expected = expected @ kernel + bias
    table = Table(source)
    for start, number in ((0, 16), (16, 16), (40, 16)):
        with table.chunk(start, 16) as chunk:
            found = tf.cast(chunk.table, tf.float64)[int(chunk.start) : int(chunk.start) + 16]
            np.testing.assert_allclose(
                found[:number], np.pad(expected[start : start + 16], ((0, 16 - len(found[: 50 - start])), (0, 0))), atol=1e-5
            )
    np.testing.assert_allclose(table.rows(slice(3, 6)).astype(np.float64), expected[3:6], atol=1e-5)
    np.testing.assert_allclose(
        Table(table.sample(np.array([1, 49]))).rows(slice(0, 2)).astype(np.float64), expected[[1, 49]], atol=1e-5
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf, 1e300])
def test_features_that_are_not_finite_in_float32_are_named(rng, wrong):
    """NumPy's own warnings of such values would be errors here."""
    features = rng.normal(size=(600, 4))
    features[77, 2] = wrong
    with pytest.raises(ValueError, match=r"`features` .* row 77"):
        sinkhorn(LinearLogits(features, np.ones((4, 3), np.float32), np.zeros(3, np.float32)))


def test_threads_have_buffers_of_their_own():
    values = np.arange(40, dtype=np.float32).reshape(10, 4)
    table, meet, found = Table(values), threading.Barrier(2, timeout=30), {}

    def read(start: int) -> None:
        with table.chunk(start, 5) as chunk:
            meet.wait()
            found[start] = chunk.table.numpy().copy()

    threads = [threading.Thread(target=read, args=(start,)) for start in (0, 5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    np.testing.assert_array_equal(np.concatenate([found[0], found[5]]), values)


def _blas_threads() -> set[int]:
    return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}


def test_the_limit_on_threads_ends_with_the_last_of_those_who_set_it():
    before = _blas_threads()
    first, second = one_blas_thread(), one_blas_thread()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert _blas_threads() == {1}
    second.__exit__(None, None, None)
    assert _blas_threads() == before
