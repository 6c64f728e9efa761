"""Threads that share the chunks of a pass: `map_in_threads`, and the settings of the process that they need meanwhile."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

import tensorflow as tf
from threadpoolctl import ThreadpoolController

_Result = TypeVar("_Result")


@functools.cache
def _thread_pool(num_threads: int) -> ThreadPoolExecutor:
    """Returns the pool of this many threads, the same one at every call."""
    return ThreadPoolExecutor(num_threads, thread_name_prefix="sinkhorn")


def map_in_threads(function: Callable[[Any], _Result], items: Sequence[Any], num_threads: int) -> list[_Result]:
    """Returns the results of `function` for all items, in their order; threads take an item each.

    XLA on a CPU runs a loop on one thread and releases Python's global interpreter lock meanwhile, so that threads run side by side.
    """
    if num_threads == 1 or len(items) == 1:
        return [function(item) for item in items]
    return list(_thread_pool(num_threads).map(function, items))


class _OfProcess:
    """A setting of the process that lasts until the last of those who need it has left its context.

    Args:
        setting: a function that returns the context in which the setting holds.
    """

    def __init__(self, setting: Callable[[], contextlib.AbstractContextManager[Any]]):
        self._setting, self._lock, self._held, self._count = setting, threading.Lock(), contextlib.ExitStack(), 0

    @contextlib.contextmanager
    def __call__(self) -> Iterator[None]:
        with self._lock:
            if not self._count:
                self._held.enter_context(self._setting())
            self._count += 1
        try:
            yield
        finally:
            with self._lock:
                self._count -= 1
                if not self._count:
                    self._held.close()


@functools.cache
def _controller() -> ThreadpoolController:
    """Returns the controller of the libraries that NumPy calls, which are searched for once."""
    return ThreadpoolController()


@contextlib.contextmanager
def _no_tensor_float_32() -> Iterator[None]:
    """Sets that products of float32 are products of float32, also on cards that have a faster, coarser way."""
    before = tf.config.experimental.tensor_float_32_execution_enabled()
    tf.config.experimental.enable_tensor_float_32_execution(False)
    try:
        yield
    finally:
        tf.config.experimental.enable_tensor_float_32_execution(before)


_one_blas_thread = _OfProcess(lambda: _controller().limit(limits=1, user_api="blas"))
_full_float32 = _OfProcess(_no_tensor_float_32)


def one_blas_thread() -> contextlib.AbstractContextManager[None]:
    """Returns the context in which NumPy's products stay on the thread that calls them."""
    return _one_blas_thread()


def full_float32() -> contextlib.AbstractContextManager[None]:
    """Returns the context in which TensorFlow multiplies float32 as such. TensorFloat-32 keeps ten bits of logits, which lam multiplies."""
    return _full_float32()
