"""Tasks on threads, and shares of batches: each is done once, and none goes on after an error."""

from __future__ import annotations

import errno
import itertools
import os

import keras
import numpy as np
import pytest

import sela_tf
from sela_tf.commands.label_blocks import LabelledSplit, read_blocks
from sela_tf.data.errors import SourceError
from sela_tf.data.sources import load_source
from sela_tf.tasks.task_files import STOP, until_stopped
from sela_tf.tasks.workers import Workers


def double(number: int) -> int:
    if number < 0:
        raise ValueError(f"{number} is below 0")
    return 2 * number


def fill_the_disk(fills: bool) -> None:
    """Fails, or goes on until it is stopped."""
    if fills:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    for _ in until_stopped(itertools.count()):
        pass


class TestThreads:
    def test_results_are_in_order(self, tmp_path, capsys):
        with Workers(str(tmp_path), ()) as workers:
            assert workers.run(f"{__name__}:double", [[n] for n in range(50)], "doubling 50 numbers") == [2 * n for n in range(50)]
            assert capsys.readouterr().out.startswith("doubling 50 numbers here, on ")
            with pytest.raises(SourceError, match="-1 is below 0"):
                workers.run(f"{__name__}:double", [[3], [-1]], "doubling")

    def test_a_full_disk_stops_the_others(self, tmp_path):
        with Workers(str(tmp_path), ()) as workers, pytest.raises(OSError, match="No space left"):
            workers.run(f"{__name__}:fill_the_disk", [[True], [False], [False]], "filling")
        assert not STOP.is_set()


def test_shares_of_batches_are_those_of_one_process():
    """Each batch of 1797 images, 95 or 94 at a time, is in one of three shares, with the same bits."""
    inputs = keras.Input((8, 8, 1))
    embedding = keras.layers.Dense(5, name="embedding")(keras.layers.Flatten()(inputs))
    model = keras.Model(inputs, sela_tf.MultiHead(1, 4, name="heads")(embedding))
    images = load_source("digits").train
    split = LabelledSplit("train", images, np.zeros(len(images), np.float32), 0, {})

    def blocks(share: tuple[int, int]) -> dict[int, bytes]:
        return {block.start: block.embedding.tobytes() for block in read_blocks(model, [split], batch_size=95, share=share)}

    whole, parts = blocks((0, 1)), [blocks((k, 3)) for k in range(3)]
    assert sum(map(len, parts)) == len(whole) == 19
    assert {start: data for part in parts for start, data in part.items()} == whole
