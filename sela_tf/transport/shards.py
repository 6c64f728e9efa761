"""The workers that share the rows of a transport: `Shards`, of which `ALONE` is the one where all rows are here.

Every worker runs the same transport on its own rows. What has to be known over all rows goes through three messages: a sum, a join in the
workers' order, and what the first worker says. All workers get the same numbers from them, so that they come to the same potentials and stop
at the same iteration.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numpy as np

from sela_tf.transport.errors import NotFiniteError

_Result = TypeVar("_Result")


class Shards:
    """One worker, which has all rows. Those who share rows override the three messages, which every worker has to send in the same order.

    Attributes:
        index: the number of this worker, from 0.
        count: the number of workers.
    """

    index, count = 0, 1

    def total(self, *arrays: Any) -> list[np.ndarray]:
        """Returns the sums of arrays over the workers, float64; every worker gives the same shapes."""
        return [np.asarray(array, np.float64) for array in arrays]

    def joined(self, *arrays: np.ndarray) -> list[np.ndarray]:
        """Returns for each array [n, …] those of all workers, one after the other; n may differ between workers. Whole numbers that float64
        holds, and floating-point numbers, come as they are."""
        return list(arrays)

    def of_each(self, array: np.ndarray) -> np.ndarray:
        """Returns the arrays of all workers, each of the same shape […], in their order, float64 [W, …]."""
        own = np.zeros((self.count, *np.shape(array)))
        own[self.index] = array
        return self.total(own)[0]

    def of_first(self, array: np.ndarray) -> np.ndarray:
        """Returns the array of the first worker, float64: workers whose processors round differently go on from the same numbers."""
        return array

    def texts(self, text: str) -> list[str]:
        """Returns the texts of all workers, in their order."""
        letters = np.frombuffer(text.encode(), np.uint8)
        lengths, joined = self.joined(np.array([len(letters)]), letters)
        return [part.tobytes().decode() for part in np.split(joined, np.cumsum(lengths)[:-1])]

    def decide(self, is_so: bool) -> bool:
        """Returns what the first worker decides, where workers that round differently could go different ways."""
        return bool(self.of_first(np.array([is_so], np.float64))[0])

    def run(self, work: Callable[[], _Result]) -> _Result:
        """Returns what `work` returns, a function that looks at the rows of this worker and sends no messages.

        Raises:
            NotFiniteError: `work` raised it on some worker. It is raised by all.
        """
        found, complaint = None, ""
        try:
            found = work()
        except NotFiniteError as error:
            complaint = str(error)
        self.raise_any(complaint)
        return cast("_Result", found)

    def raise_any(self, complaint: str) -> None:
        """Checks that no worker has a complaint about its rows.

        Args:
            complaint: what is wrong with the rows of this worker; empty where nothing is.

        Raises:
            NotFiniteError: a worker has one. It is raised by all workers, with the words of the first of these.
        """
        if self.count > 1:
            if not self.total(bool(complaint))[0]:
                return
            told = complaint and f"{complaint} (counted among the rows of worker {self.index} of {self.count})"
            complaint = next(filter(None, self.texts(told)), "")
        if complaint:
            raise NotFiniteError(complaint)


ALONE = Shards()
"""The one worker of a transport whose rows are all here."""
