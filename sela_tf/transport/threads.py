"""Threads that share the chunks of a pass: `map_in_threads`, and `one_blas_thread`, for products inside these threads."""

from __future__ import annotations

import contextlib
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

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


_limit_lock, _limits = threading.Lock(), contextlib.ExitStack()
_num_limited = 0


@functools.cache
def _controller() -> ThreadpoolController:
    """Returns the controller of the libraries that NumPy calls, which are searched for once."""
    return ThreadpoolController()


@contextlib.contextmanager
def one_blas_thread() -> Iterator[None]:
    """Keeps NumPy's products on the thread that calls them. The limit is one of the process, and ends with the last of those who set it."""
    global _num_limited
    with _limit_lock:
        if not _num_limited:
            _limits.enter_context(_controller().limit(limits=1, user_api="blas"))
        _num_limited += 1
    try:
        yield
    finally:
        with _limit_lock:
            _num_limited -= 1
            if not _num_limited:
                _limits.close()
