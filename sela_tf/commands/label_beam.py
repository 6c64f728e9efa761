"""The outputs of a network for records, computed in parts by workers of Apache Beam, for sets that outgrow a machine."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import shutil
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np

from sela_tf.commands.label_blocks import Block, LabelledSplit, read_blocks
from sela_tf.commands.label_images import images_to_label
from sela_tf.commands.label_viewers import ForViewers
from sela_tf.data.splits import match_input
from sela_tf.files.storage import storage_errors
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.network import load_run, read_description
from sela_tf.settings.commands import LabelConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.tasks.task_files import until_stopped
from sela_tf.tasks.workers import Workers, refuse_without_beam

_RECORDS = "records:"
_NO_MEMORY = 1e-9
"""GiB for decoded images: no process reads all of them."""
_BATCHES = 16
"""Batches of a task, at least: enough that loading the network takes little beside them."""
_ON_THIS_MACHINE = ("--direct_running_mode=multi_processing", "--direct_num_workers=0")
"""Options of Beam's FnApiRunner where none are given: a process for each processor."""


def for_beam(settings: LabelConfig, dataset_of_run: str) -> LabelConfig:
    """Returns the settings of a labelling by Beam, which reads images as they are needed.

    Raises:
        ConfigError: Beam is missing, or the images are no records, of which alone a worker can read a part.
    """
    refuse_without_beam(f"beam_runner={settings.beam_runner}")
    dataset = settings.dataset or dataset_of_run
    if not dataset.startswith(_RECORDS):
        raise ConfigError(
            f"`beam_runner={settings.beam_runner}` labels records: write them with components.data_ingestion and give "
            f"`dataset=records:DIR`, or leave `beam_runner` out. Received: `dataset={dataset}`"
        )
    return dataclasses.replace(settings, memory_limit=_NO_MEMORY)


def blocks_by_beam(
    settings: LabelConfig, splits: Sequence[LabelledSplit], viewers: ForViewers, output: pathlib.Path
) -> Iterator[Block]:
    """Yields the blocks that `read_blocks` would yield, in the same order. Workers compute them in parts and write these beside the output.

    Args:
        settings: the settings of the command, see `for_beam`.
        splits: the images.
        viewers: keeps the small pictures that workers made.
        output: the file that the command writes; on a cluster it lies where all workers can write.

    Raises:
        ConfigError: Beam refuses its options.
        SourceError: a record cannot be read.
        WorkerLostError: a worker has ended before its work was done.
        StorageError: the disk is full.
    """
    options = settings.beam_pipeline_args or (_ON_THIS_MACHINE if settings.beam_runner == "FnApiRunner" else ())
    scratch = output.parent / f".unfinished-{output.name}.parts"
    shutil.rmtree(scratch, ignore_errors=True)  # those of a command that was killed
    text = json.dumps(dataclasses.asdict(settings))
    batches = [-(-len(split.images) // settings.batch_size) for split in splits]
    shares = [max(1, count // _BATCHES) for count in batches]
    tasks = [(text, number, [k, share], str(scratch)) for number, share in enumerate(shares) for k in range(share)]
    try:
        with storage_errors(output):
            scratch.mkdir()
            with Workers(str(scratch), (f"--runner={settings.beam_runner}", *options)) as workers:
                total = sum(len(split.images) for split in splits)
                workers.run(f"{__name__}:label_share", tasks, f"labelling {total} images")
        for number, split in enumerate(splits):
            start = 0
            for _ in range(batches[number]):
                file = scratch / _name(number, start)
                with np.load(file) as archive:
                    embedding, head_inputs, pictures = (archive[name] for name in ("embedding", "head_inputs", "pictures"))
                file.unlink()
                block = Block(split, start, embedding, head_inputs)
                viewers.keep(block.places, pictures)
                yield block
                start += len(embedding)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def label_share(text: str, number: int, share: Sequence[int], scratch: str) -> None:
    """Computes the outputs for a share of the batches of a split, in a worker, and writes a file for each batch.

    Args:
        text: the settings of the command, as JSON.
        number: number of the split.
        share: number of this share, and of all.
        scratch: path of the directory of the files.
    """
    model, splits, settings = _loaded(text)
    viewers = ForViewers(settings, splits, pathlib.Path(settings.projector) if settings.projector else None)
    one, of = share
    for block in until_stopped(
        read_blocks(model, [splits[number]], batch_size=settings.batch_size, views_seen=viewers.see, share=(one, of))
    ):
        # A share may be computed twice at once: the last one that is done replaces an equal file.
        mine = pathlib.Path(scratch, f"{os.getpid()}-{threading.get_ident()}.npz")
        pictures = viewers.pictures(block.places)
        np.savez(mine, embedding=block.embedding, head_inputs=block.head_inputs, pictures=pictures)
        mine.replace(pathlib.Path(scratch, _name(number, block.start)))


def _name(number: int, start: int) -> str:
    """Returns the name of the file of the batch of a split that begins with an image."""
    return f"{number}-{start}.npz"


@functools.lru_cache(maxsize=1)
def _loaded(text: str) -> tuple[keras.Model, list[LabelledSplit], LabelConfig]:
    """Loads the network and the images of a command, once in each worker; without what the run and names say of the images."""
    said: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in json.loads(text).items()}
    settings = LabelConfig(**said)
    config, model = read_config(settings.workdir), load_run(settings.workdir)
    sets, _ = images_to_label(settings, config, read_description(settings.workdir).pixel_rules)
    splits: list[LabelledSplit] = []
    for name, images in sets:
        offset = sum(len(split.images) for split in splits)
        images = match_input(images, model.input.shape[1:])
        splits.append(LabelledSplit(name, images, np.zeros(len(images), np.float32), offset, {}))
    return model, splits, settings
