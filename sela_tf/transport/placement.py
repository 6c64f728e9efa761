"""The devices that a transport runs on: `Placement`, and `placed`, which names others than those that are there.

A processor takes chunks that stay in its cache, with its threads side by side; Newton's method and the rounding work on lists in NumPy
there. Graphics cards take large chunks in turn, which stay where they are; there the solve is Anderson-accelerated Sinkhorn alone, and the
rounding's candidates are found on the card.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
from collections.abc import Iterator
from typing import NamedTuple

import tensorflow as tf

# Calling a compiled function costs 0.1 ms; reading a chunk of this many entries takes a processor twenty times as long.
_PROCESSOR_CHUNK = 2**22
# A card reads four terabytes a second: a chunk of this many entries takes it a fraction of a millisecond, and a gigabyte of its memory.
_CARD_CHUNK = 2**28


class Placement(NamedTuple):
    """The devices of a transport."""

    devices: tuple[str, ...] = ()
    """The devices that take chunks in turn; empty for the one that TensorFlow takes by itself."""
    on_cards: bool = False
    """True where the devices have memory of their own, to which rows are brought once."""
    chunk_entries: int = _PROCESSOR_CHUNK
    """The most entries of a chunk."""

    @property
    def num_memories(self) -> int:
        """The number of memories that rows are shared between."""
        return max(1, len(self.devices)) if self.on_cards else 1

    @property
    def num_parts(self) -> int:
        """The number that the number of chunks is a multiple of, where there are several."""
        return self.num_memories if self.on_cards else 2

    @property
    def num_threads(self) -> int:
        """The number of threads that chunks are shared between, unless another is asked for."""
        return self.num_memories if self.on_cards else len(os.sched_getaffinity(0))

    def scope(self, chunk: int) -> contextlib.AbstractContextManager[None]:
        """Returns the scope in which TensorFlow works on the device of a chunk, by the chunk's number."""
        return tf.device(self.devices[chunk % len(self.devices)]) if self.devices else contextlib.nullcontext()

    def side_by_side(self, num_problems: int, num_entries: int) -> list[Placement]:
        """Returns placements on which problems are solved at the same time, so that no card is idle.

        There are several only where a problem has fewer chunks than there are cards: sharing its rows comes first.

        Args:
            num_problems: the number of problems.
            num_entries: the number N x K of entries of each.
        """
        chunks = -(-num_entries // self.chunk_entries)
        count = max(1, min(num_problems, self.num_memories // chunks))
        return [self._replace(devices=self.devices[part::count]) for part in range(count)] if count > 1 else [self]


_given: contextvars.ContextVar[Placement | None] = contextvars.ContextVar("sela_tf.placement", default=None)


def present() -> Placement:
    """Returns the placement that is given by `placed` in this thread, or else all graphics cards of this machine, or its processor."""
    if (given := _given.get()) is not None:
        return given
    cards = tf.config.list_logical_devices("GPU")
    return Placement(tuple(card.name for card in cards), on_cards=True, chunk_entries=_CARD_CHUNK) if cards else Placement()


@contextlib.contextmanager
def placed(placement: Placement) -> Iterator[None]:
    """Lets the transports of this thread run on other devices, until the context is left."""
    token = _given.set(placement)
    try:
        yield
    finally:
        _given.reset(token)
