"""The work of `python -m sela_tf.label`: labels for any images, by the network of a finished run."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import tempfile
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from sela_tf.commands.label_blocks import Block, LabelledSplit, StoredOutputs, store_blocks, stored_blocks
from sela_tf.compat.activity import Activity
from sela_tf.data.image_set import ImageSet
from sela_tf.data.left_out import ImageNote, write_left_out
from sela_tf.data.left_out import beside as left_out_beside
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.pixel_rules import PixelRules
from sela_tf.data.rules_of_images import saturation_in_words
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.splits import match_input
from sela_tf.models.build import cut_at
from sela_tf.models.heads import MultiHead, find_multi_head
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.reporting.markdown import markdown
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.labels import read_labels
from sela_tf.runs.names import RUN_FILES
from sela_tf.runs.network import load_run, read_description
from sela_tf.serving.label_writer import Columns, LabelWriter
from sela_tf.serving.predictions import predictions
from sela_tf.serving.review import ReviewScores, known_changes
from sela_tf.settings.commands import LabelConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import absolute_cache, absolute_path, absolute_source, refuse_unwritable
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import load_data, tell
from sela_tf.transport.assignment import assign_labels
from sela_tf.transport.linear_logits import LinearLogits

_SHOWN = 5


class _Labelling(NamedTuple):
    """The heads, potentials and scores that turn outputs of the network into labels."""

    heads: MultiHead
    """Heads of the network."""
    potentials: np.ndarray | None
    """Potentials [T, K]; None for the network's plain argmax."""
    lam: float
    """Lambda of the transport of the potentials."""
    scores: ReviewScores
    """Scores of which images to look at first."""
    clusters: np.ndarray | None = None
    """Balanced clusters [N, T] of the images of all splits; None for the most probable cluster of each image."""


def label_run(settings: LabelConfig) -> str:
    """Labels images with the network of a finished run.

    Args:
        settings: run, images, and the file to write.

    Returns:
        A summary for a terminal.

    Raises:
        ValueError: there is no finished run, the images cannot be loaded or do not suit the network, or the file cannot be written.
    """
    output = _output(settings)
    config, model = read_config(settings.workdir), load_run(settings.workdir)
    heads = find_multi_head(model)
    labels = read_labels(settings.workdir, (heads.num_heads, heads.num_clusters))
    splits: list[LabelledSplit] = []
    num_images = 0
    sets, rejected = _images(settings, config, read_description(settings.workdir).pixel_rules)
    for name, images in sets:
        splits.append(LabelledSplit(name, match_input(images, model.input.shape[1:]), known_changes(images, labels), num_images))
        num_images += len(images)
        if name == "train" and not settings.dataset and np.isnan(splits[-1].num_changes).all():
            print(
                "these images are not those that the run was trained on (some were added, removed or changed since): num_changes is missing, and "
                "look_here_first rests on the rest",
                flush=True,
            )
    if settings.balanced and num_images < heads.num_clusters:
        raise ConfigError(f"`balanced=True` needs as many images as clusters: {num_images} images, {heads.num_clusters} clusters")
    scores = ReviewScores(labels["labels"], labels["num_changes"], labels["num_relabellings"], num_clusters=heads.num_clusters)
    labelling = _Labelling(heads, labels["potentials"] if settings.potentials else None, float(labels["lam"]), scores)
    with contextlib.ExitStack() as stack:
        blocks = _blocks(model, splits, settings)
        if settings.balanced:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix=f".unfinished-{output.name}-", dir=output.parent))
            widths = (model.get_layer(EMBEDDING).output.shape[-1], heads.input.shape[-1])
            stored = store_blocks(blocks, pathlib.Path(directory), num_images, widths)
            clusters, potentials = _balanced(stored, heads, config, labels["potentials"], settings, lam=labelling.lam)
            labelling = labelling._replace(potentials=potentials, clusters=clusters)
            blocks = stored_blocks(stored, splits, settings.batch_size)
        writer = stack.enter_context(LabelWriter(output))
        columns, most_urgent = _write(writer, blocks, labelling, embeddings=settings.embeddings, name_splits=len(splits) > 1)
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


def _images(
    settings: LabelConfig, config: SelaConfig, rules: PixelRules
) -> tuple[list[tuple[str, ImageSet]], tuple[ImageNote, ...]]:
    """Loads the images to label by the rules of the run, not yet in the form that the network takes.

    Returns:
        (for each split its name and images; images that cannot be read).
    """
    cache_dir = absolute_cache(settings.cache_dir) if settings.cache_dir else config.cache_dir
    if not settings.dataset:
        for name, default in (("max_rejected", 0.0), ("class_level", "auto")):
            if getattr(settings, name) != default:
                raise ConfigError(
                    f"`{name}={getattr(settings, name)}` is for images of another `dataset`: those of the run are read as it read them"
                )
        config = dataclasses.replace(
            config,
            data_dir=settings.data_dir or config.data_dir,
            cache_dir=cache_dir,
            memory_limit=settings.memory_limit,
            classes=settings.classes if settings.classes == "none" else config.classes,
        )
        data = load_data(config, rules)
        return [("train", data.train), ("eval", data.held_out)], data.rejected
    options = SourceOptions(
        use_classes=settings.classes == "auto",
        data_dir=settings.data_dir or config.data_dir,
        download=settings.download,
        max_rejected=settings.max_rejected,
        class_level=settings.class_level,
        memory_limit=int(settings.memory_limit * 2**30),
        cache_dir=cache_dir,
        rules=rules,
    )
    with Activity("reading images"):
        splits = load_source(absolute_source(settings.dataset, tell=tell), options, tell=tell)
    parts = [("train", splits.train)] + ([("eval", splits.eval)] if splits.eval is not None else [])
    for line in (*splits.report, *filter(None, (saturation_in_words(images) for _, images in parts))):
        tell(line)
    return parts, splits.rejected


def _blocks(model: keras.Model, splits: list[LabelledSplit], settings: LabelConfig) -> Iterator[Block]:
    """Yields the outputs of the network, a batch at a time, with a progress bar."""
    cut = cut_at(model, EMBEDDING, find_multi_head(model).input)
    forward = tf.function(lambda images: cut(images, training=False), reduce_retracing=True)
    total = sum(len(split.images) for split in splits)
    with tqdm(total=total, unit="image", disable=None, dynamic_ncols=True, leave=False) as bar:
        for split in splits:
            size, start = tuple(model.input.shape[1:-1]), 0
            for images, _ in inference_batches(split.images, size=size, batch_size=settings.batch_size, in_order=True):
                embedding, head_inputs = (tf.cast(values, tf.float32).numpy() for values in forward(images))
                yield Block(split, start, embedding, head_inputs)
                start += len(embedding)
                bar.update(len(embedding))


def _balanced(
    stored: StoredOutputs,
    heads: MultiHead,
    config: SelaConfig,
    initial_potentials: np.ndarray,
    settings: LabelConfig,
    *,
    lam: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Solves the transport of each head on the stored inputs of the heads.

    Returns:
        (clusters [N, T], exactly balanced; potentials [T, K]).
    """
    solved = []
    for head in range(heads.num_heads):
        assignment = assign_labels(
            LinearLogits(stored.head_inputs, heads.head_kernel(head), heads.head_bias(head)),
            lam=lam,
            tolerance=config.transport_tolerance,
            max_iterations=config.transport_max_iterations,
            initial_potentials=initial_potentials[head],
            marginals=config.marginals,
            memory_limit=settings.label_memory * 2**30,
        )
        not_converged = f"; NOT CONVERGED (marginal error {assignment.marginal_error:.1e}), yet balanced exactly"
        print(
            f"head {head}: {assignment.num_iterations} iterations, clusters of {assignment.sizes.min()} to {assignment.sizes.max()} images"
            + ("" if assignment.converged else not_converged),
            flush=True,
        )
        solved.append(assignment)
    return np.stack([one.labels for one in solved], axis=1), np.stack([one.potentials for one in solved])


def _write(
    writer: LabelWriter, blocks: Iterable[Block], labelling: _Labelling, *, embeddings: bool, name_splits: bool
) -> tuple[Columns, list[tuple[float, str]]]:
    """Labels all blocks and writes them.

    Returns:
        (the columns of the last block; the images to look at first, as (score, name), the highest score first).
    """
    columns: dict[str, np.ndarray] = {}
    most_urgent: list[tuple[float, str]] = []
    for block in blocks:
        columns = _columns(block, labelling)
        most_urgent = _most_urgent(most_urgent, columns)
        if embeddings:
            columns["embedding"] = block.embedding
        if not name_splits:
            del columns["split"]
        writer.write(columns)
    return columns, most_urgent


def _columns(block: Block, labelling: _Labelling) -> dict[str, np.ndarray]:
    """Returns the columns of the file for a block, except the embedding."""
    heads, scores, clusters = labelling.heads, labelling.scores, labelling.clusters
    predicted = predictions(
        heads(block.head_inputs),
        labelling.potentials,
        lam=labelling.lam,
        clusters=None if clusters is None else clusters[block.places],
    )
    images, rows = block.split.images, block.rows
    columns: dict[str, np.ndarray] = {}
    if images.names is not None:
        columns["name"] = np.array(images.names[rows])
    else:
        columns["index"] = images.rows[rows]
    columns["split"] = np.full(len(block.head_inputs), block.split.name)
    if images.classes is not None:
        numbers, names = images.classes[rows], images.class_names
        columns["class"] = numbers if names is None else np.array(names)[numbers]
    for head in range(heads.num_heads):
        suffix = f"_{head}" if heads.num_heads > 1 else ""
        for name, values in predicted._asdict().items():
            columns[name + suffix] = np.asarray(values)[:, head]
    disagreement = scores.disagreement(np.asarray(predicted.cluster))
    if heads.num_heads > 1:
        columns["disagreement"] = disagreement
    columns["num_changes"] = block.split.num_changes[rows]
    columns["look_here_first"] = scores.look_here_first(predicted.margin.numpy(), disagreement, columns["num_changes"])
    return columns


def _most_urgent(before: list[tuple[float, str]], columns: Columns) -> list[tuple[float, str]]:
    """Returns the images to look at first, among those of `before` and those of a block, as (score, name)."""
    scores = columns["look_here_first"]
    here = [(float(scores[i]), _name(columns, i)) for i in np.argsort(-scores)[:_SHOWN]]
    return sorted(before + here, key=lambda pair: -pair[0])[:_SHOWN]


def _name(columns: Columns, i: int) -> str:
    """Returns the name of the i-th image of a block, or its source row and split, for a line of a table."""
    if "index" in columns:
        return f"{columns['index'][i]} ({columns['split'][i]})"
    # The name of a file may contain line breaks, which `repr` escapes.
    return repr(str(columns["name"][i]))[1:-1]


def _summary(output: pathlib.Path, num_images: int, columns: Columns, most_urgent: list[tuple[float, str]]) -> str:
    """Returns what was written, and the table of the images to look at first."""
    rows = [[name, f"{score:.3f}"] for score, name in most_urgent]
    return (
        f"{num_images} images labelled: {output}, {output.stat().st_size / 1e6:.1f} MB, columns {', '.join(columns)}\n\n"
        f"{markdown(['look here first', 'score'], rows)}"
    )
