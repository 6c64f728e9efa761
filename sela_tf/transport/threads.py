"""Threads that share the chunks of a pass."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

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
