"""The work of `python -m sela_tf.label`: labels for any images, by the network of a finished run."""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterable, Mapping

import keras
import numpy as np

from sela_tf.commands.label_balanced import balanced_clusters
from sela_tf.commands.label_beam import blocks_by_beam, for_beam
from sela_tf.commands.label_blocks import (
    Block,
    LabelledSplit,
    classes_of,
    read_blocks,
    store_blocks,
    stored_blocks,
    take_places,
)
from sela_tf.commands.label_columns import Labelling, columns_of, most_urgent_of
from sela_tf.commands.label_images import images_to_label
from sela_tf.commands.label_names import LabelNames, names_to_write
from sela_tf.commands.label_viewers import ForViewers, projector_directory
from sela_tf.commands.outputs import only_writer
from sela_tf.data.image_set import ImageSet
from sela_tf.data.left_out import beside as left_out_beside
from sela_tf.data.left_out import write_left_out
from sela_tf.data.splits import match_input
from sela_tf.evaluation.urgency import Urgency, sample_places
from sela_tf.models.heads import find_multi_head
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.reporting.markdown import markdown
from sela_tf.reporting.projector import projector_files
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.labels import known_changes, read_labels
from sela_tf.runs.names import RUN_FILES
from sela_tf.runs.network import load_run, read_description
from sela_tf.serving.disagreement import HeadDisagreement
from sela_tf.serving.label_writer import Column, Columns, LabelWriter
from sela_tf.settings.commands import LabelConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import absolute_path, absolute_source, refuse_unwritable
from sela_tf.training.images import tell

_KEPT_BYTES = 2**28
"""The most bytes of outputs of the network that are kept in memory, so that it does not run twice on the images of the sample."""


def label_run(settings: LabelConfig) -> str:
    """Labels images with the network of a finished run.

    Args:
        settings: run, images, and the file to write.

    Returns:
        A summary for a terminal.

    Raises:
        ConfigError: there is no finished run, or the file cannot be written, or another command is writing it.
        SourceError: the images cannot be loaded or do not suit the network.
        StorageError: the disk is full.
    """
    output, projector = _output(settings), projector_directory(settings.projector)
    with contextlib.ExitStack() as stack:
        stack.enter_context(only_writer("output", output, left_out_beside(output)))
        if projector is not None:
            stack.enter_context(only_writer("projector", projector, *projector_files(projector)))
        return _label(settings, output, projector)


def _label(settings: LabelConfig, output: pathlib.Path, projector: pathlib.Path | None) -> str:
    """Does the work of `label_run`: writes the file `output` and, where it is given, the directory of the projector."""
    config, model = read_config(settings.workdir), load_run(settings.workdir)
    if settings.beam_runner:
        settings = for_beam(settings, config.dataset)
    heads = find_multi_head(model)
    labels = read_labels(settings.workdir, (heads.num_heads, heads.num_clusters))
    names = names_to_write(settings.names, labels, heads.num_heads, heads.num_clusters)
    sets, rejected = images_to_label(settings, config, read_description(settings.workdir).pixel_rules)
    splits = _splits(sets, model, labels, names, is_own=not settings.dataset)
    num_images = sum(len(split.images) for split in splits)
    if not settings.dataset and np.isnan(splits[0].num_changes).all():
        print(
            "these images are not those that the run was trained on (some were added, removed or changed since): num_changes is missing",
            flush=True,
        )
    if settings.balanced and num_images < heads.num_clusters:
        raise ConfigError(f"`balanced=True` needs as many images as clusters: {num_images} images, {heads.num_clusters} clusters")
    lam, potentials, clusters = float(labels["lam"]), labels["potentials"] if settings.potentials else None, None
    classes = classes_of(splits)
    viewers = ForViewers(settings, splits, projector)
    blocks: Iterable[Block] = (
        blocks_by_beam(settings, splits, viewers, output)
        if settings.beam_runner
        else read_blocks(model, splits, batch_size=settings.batch_size, views_seen=viewers.see)
    )
    widths = (model.get_layer(EMBEDDING).output.shape[-1], heads.input.shape[-1])
    embedding: np.ndarray | None = None
    if settings.balanced:
        stored = store_blocks(blocks, output.parent, num_images, widths)
        clusters, potentials = balanced_clusters(
            stored, heads, config, labels["potentials"], settings, num_trained=labels["labels"].shape[1], lam=lam
        )
        blocks = stored_blocks(stored, splits, settings.batch_size)
        embedding = stored.embedding
    elif viewers.num_neighbours or 4 * num_images * sum(widths) <= _KEPT_BYTES:
        blocks = list(blocks)
        embedding = np.concatenate([block.embedding for block in blocks])
    if embedding is not None:
        viewers.find_neighbours(embedding)
    urgency = _urgency(model, splits, embedding, classes, batch_size=settings.batch_size)
    disagreement = HeadDisagreement(labels["labels"], num_clusters=heads.num_clusters)
    labelling = Labelling(heads, potentials, lam, disagreement, urgency, names, clusters, classes)
    with LabelWriter(output) as writer:
        columns, most_urgent = _write(
            writer, blocks, labelling, viewers, embeddings=settings.embeddings, name_splits=len(splits) > 1
        )
    viewers.write_projector()
    if write_left_out(left_out_beside(output), rejected):
        print(f"images that were left out: {left_out_beside(output)}", flush=True)
    return _summary(output, num_images, columns, most_urgent)


def _output(settings: LabelConfig) -> pathlib.Path:
    """Returns the path of the file to write.

    Raises:
        ConfigError: it cannot be written, or is a file of the run or the data set itself.
    """
    output = pathlib.Path(absolute_path(settings.output))
    if output.is_dir():
        raise ConfigError(f"`output={settings.output}` is a directory: name a file in it")
    if not output.parent.is_dir():
        raise ConfigError(
            f"`output={settings.output}`: there is no directory {str(output.parent)!r}: make it, or name another file"
        )
    refuse_unwritable("output", output.parent)
    read = [pathlib.Path(absolute_path(settings.workdir)) / name for name in RUN_FILES]
    read.append(pathlib.Path(absolute_source(settings.dataset).partition(":")[2]))
    if output.resolve() in [path.resolve() for path in read]:
        raise ConfigError(f"`output={settings.output}` is read by this very command: name another file")
    return output


def _splits(
    sets: Iterable[tuple[str, ImageSet]],
    model: keras.Model,
    labels: Mapping[str, np.ndarray],
    names: LabelNames | None,
    *,
    is_own: bool,
) -> list[LabelledSplit]:
    """Returns the images of all splits as the network takes them, with what the run and the names say of them.

    Args:
        sets: for each split its name and images.
        model: the network.
        labels: arrays of the run's labels.npz.
        names: names of clusters and images; None for none.
        is_own: True for the images that the run itself names.
    """
    splits: list[LabelledSplit] = []
    offset = 0
    for name, images in sets:
        changes = known_changes(images, labels)
        are_of_run = is_own or not np.isnan(changes).all()
        said = {} if names is None else names.of_images(images, is_first=not splits, are_of_run=are_of_run)
        splits.append(LabelledSplit(name, match_input(images, model.input.shape[1:]), changes, offset, said))
        offset += len(images)
    if names is not None and (missed := len(names.images) - sum(len(split.said) for split in splits)):
        tell(f"names: {missed} of {len(names.images)} images that were named one by one are not among those to label")
    return splits


def _urgency(
    model: keras.Model,
    splits: list[LabelledSplit],
    embedding: np.ndarray | None,
    classes: np.ndarray | None,
    *,
    batch_size: int,
) -> Urgency:
    """Returns the urgency of looking at images, by a sample of them.

    Args:
        model: the network.
        splits: the N images.
        embedding: their embeddings [N, D]; None where they are not kept: then the network runs on the sample beforehand.
        classes: their classes [N]; None where they are not known.
        batch_size: images at a time.
    """
    places = sample_places(sum(len(split.images) for split in splits))
    if embedding is None:
        blocks = read_blocks(model, take_places(splits, places), batch_size=batch_size)
        sampled = np.concatenate([block.embedding for block in blocks])
    else:
        sampled = np.array(embedding[places])
    return Urgency(sampled, None if classes is None else classes[places], places)


def _write(
    writer: LabelWriter, blocks: Iterable[Block], labelling: Labelling, viewers: ForViewers, *, embeddings: bool, name_splits: bool
) -> tuple[Columns, list[tuple[float, str]]]:
    """Labels all blocks and writes them.

    Returns:
        (the columns of the last block; the images to look at first, as (score, name), the highest score first).
    """
    columns: dict[str, Column] = {}
    most_urgent: list[tuple[float, str]] = []
    for block in blocks:
        labelled = columns_of(block, labelling)
        most_urgent = most_urgent_of(most_urgent, labelled)
        if not name_splits:
            del labelled["split"]
        viewers.note(block, labelled)
        columns = {**labelled, **({"embedding": block.embedding} if embeddings else {}), **viewers.columns(block)}
        writer.write(columns)
    return columns, most_urgent


def _summary(output: pathlib.Path, num_images: int, columns: Columns, most_urgent: list[tuple[float, str]]) -> str:
    """Returns what was written, and the table of the images to look at first."""
    rows = [[name, f"{score:.3f}"] for score, name in most_urgent]
    return (
        f"{num_images} images labelled: {output}, {output.stat().st_size / 1e6:.1f} MB, columns {', '.join(columns)}\n\n"
        f"{markdown(['look here first', 'score'], rows)}"
    )
