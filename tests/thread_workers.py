"""Workers of a transport as threads of one process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from sela_tf.transport.shards import Shards


class Board:
    """The messages of the workers of a transport, one after the other."""

    def __init__(self, count: int):
        self.barrier, self.slots = threading.Barrier(count, timeout=120), [None] * count

    def exchange(self, index: int, kind: str, value: Any) -> list[Any]:
        """Returns what all workers say; they have to send messages of the same kinds in the same order."""
        self.slots[index] = (kind, value)
        self.barrier.wait()
        kinds, values = zip(*self.slots, strict=True)
        self.barrier.wait()
        assert len(set(kinds)) == 1, kinds
        return list(values)


class ThreadShards(Shards):
    """One of several workers. `rounding` is the relative error of its sums: its processor rounds differently."""

    def __init__(self, index: int, count: int, board: Board, rounding: float = 0.0):
        self.index, self.count, self._board, self._rounding = index, count, board, rounding
        self.messages = 0

    def _exchange(self, kind: str, value: Any) -> list[Any]:
        self.messages += 1
        return self._board.exchange(self.index, kind, value)

    def total(self, *arrays):
        parts = self._exchange("total", [np.array(array, np.float64) for array in arrays])
        return [np.sum([part[i] for part in parts], axis=0) * (1 + self._rounding) for i in range(len(arrays))]

    def joined(self, *arrays):
        found = self._exchange("joined", [np.array(array) for array in arrays])
        return [np.concatenate(parts) for parts in zip(*found, strict=True)]

    def of_first(self, array):
        return self._exchange("of_first", np.array(array, np.float64))[0]


def in_threads(count: int, work: Callable[[ThreadShards], Any], rounding: float = 0.0) -> list[Any]:
    """Runs `work` on each of `count` workers; returns what each returned or raised. All but the first round differently."""
    board, results = Board(count), [None] * count

    def run(index: int) -> None:
        try:
            results[index] = work(ThreadShards(index, count, board, rounding * (index > 0)))
        except Exception as error:
            results[index] = error
            if not isinstance(error, ValueError):
                board.barrier.abort()

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results
