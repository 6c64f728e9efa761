"""Memory, bandwidth and processors, as this machine has them now."""

from __future__ import annotations

import ctypes
import gc
import multiprocessing
import os
import time
from collections.abc import Callable
from typing import Any

import numpy as np

MB = 1e6


def environment(num_threads: int) -> dict[str, str]:
    """For processes whose libraries start no threads of their own; `num_threads` are what TensorFlow may start."""
    names = ("OMP", "OPENBLAS", "MKL", "NUMEXPR")
    threads = {f"{name}_NUM_THREADS": "1" for name in names}
    tensorflow = {f"TF_NUM_{pool}OP_THREADS": str(num_threads) for pool in ("INTRA", "INTER")}
    return {**os.environ, **threads, **tensorflow, "TF_CPP_MIN_LOG_LEVEL": "3", "JAX_PLATFORMS": "cpu"}


def median(cells: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a cell with the median of every number of some cells; or the first of them that was cut or failed, as it has no `seconds`."""
    unfinished = [cell for cell in cells if "seconds" not in cell]
    if unfinished:
        return unfinished[0]
    names = [name for name, value in cells[0].items() if isinstance(value, int | float)]
    return {name: float(np.median([cell[name] for cell in cells])) for name in names}


Checked = tuple[str, bool, str]
"""A goal, whether it is reached, and the figure."""


def print_goals(checked: list[Checked]) -> int:
    """Prints each goal as reached or missed; returns the exit status, 1 if one was missed or none was measured."""
    for name, is_reached, figure in checked:
        print(f"{'reached' if is_reached else 'MISSED'}: {name}: {figure}")
    return int(not checked or not all(is_reached for _, is_reached, _ in checked))


def pin(num_threads: int) -> None:
    """Keeps this process, whatever threads its libraries start, on so many processors: the last ones."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-num_threads:])


class PeakMemory:
    """Megabytes that a process takes beyond what it holds now, at the worst moment: `getrusage` cannot forget the compilers' peak."""

    def __init__(self):
        gc.collect()
        ctypes.CDLL("libc.so.6").malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")
        self._before = _status("VmRSS")

    def megabytes(self) -> float:
        return (_status("VmHWM") - self._before) / MB


def _status(name: str) -> int:
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) * 1024 for line in file if line.startswith(name))


def bandwidth(num_bytes: int, num_processes: int = 1) -> float:
    """Bytes a second that so many processes read together, each an array so large, by the best of NumPy's loops.

    The caller's environment is that of `environment`.
    """
    context = multiprocessing.get_context("spawn")
    barrier, rates = context.Barrier(num_processes), context.Queue()
    readers = [context.Process(target=_read, args=(num_bytes, barrier, rates)) for _ in range(num_processes)]
    for reader in readers:
        reader.start()
    total = sum(rates.get() for _ in readers)
    for reader in readers:
        reader.join()
    return total


def _read(num_bytes: int, barrier: multiprocessing.Barrier, rates: multiprocessing.Queue) -> None:
    values = np.ones(num_bytes // 4, np.float32)
    rows, row = values[: len(values) // 128 * 128].reshape(-1, 128), np.ones(128, np.float32)
    loops: list[Callable[[], object]] = [lambda: values @ values, lambda: values.sum(), lambda: values.max(), lambda: rows @ row]
    seconds = []
    for loop in loops:
        times = [_time(loop) for _ in range(3)]
        seconds.append(min(times))
    best = loops[int(np.argmin(seconds))]
    barrier.wait()
    times = [_time(best) for _ in range(max(5, int(1.0 / min(seconds))))]
    rates.put(num_bytes / (min(times) if barrier.parties == 1 else float(np.median(times))))


def _time(function: Callable[[], object]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start
