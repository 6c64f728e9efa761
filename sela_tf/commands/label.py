"""Labels any images with the network of a finished run: `label_run(settings)`."""

from __future__ import annotations

import contextlib
import dataclasses
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import keras
import numpy as np
import tensorflow as tf
from tqdm import tqdm

from sela_tf.data.image_set import ImageSet
from sela_tf.data.label_files import match_names
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.splits import match_input
from sela_tf.models.build import cut_at
from sela_tf.models.heads import MultiHead, find_multi_head
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.reporting.markdown import markdown
from sela_tf.runs.labels import read_labels
from sela_tf.runs.names import RUN_FILES
from sela_tf.runs.network import load_run
from sela_tf.runs.workdir import read_config
from sela_tf.serving.label_writer import Columns, LabelWriter
from sela_tf.serving.predictions import opinions
from sela_tf.serving.review import Scrutiny
from sela_tf.settings.commands import LabelConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import absolute_cache, absolute_path, absolute_source, refuse_unwritable
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import load_data, tell
from sela_tf.transport.assignment import assign_labels
from sela_tf.transport.linear_logits import LinearLogits

_SHOWN = 5


class _Part(NamedTuple):
    """Images of one split."""

    name: str
    images: ImageSet
    num_changes: np.ndarray
    """float32 [N], times that a relabelling changed the label, over all heads; NaN where it is not known."""


class _Block(NamedTuple):
    """What the network makes of some images, in order."""

    part: _Part
    start: int
    embedding: np.ndarray
    """[B, D]."""
    head_inputs: np.ndarray
    """Inputs of the heads, float32 [B, F]."""


def label_run(settings: LabelConfig) -> str:
    """Writes the file of labels, and returns what there is to say of it.

    Raises:
        ValueError: there is no finished run, the images cannot be loaded or do not suit the network, or the file cannot be written.
    """
    output = pathlib.Path(absolute_path(settings.output))
    if output.is_dir():
        raise ConfigError(f"--output={settings.output} is a directory: name a file in it")
    if not output.parent.is_dir():
        raise ConfigError(
            f"--output={settings.output}: there is no directory {str(output.parent)!r}: make it, or name another file"
        )
    refuse_unwritable("output", output.parent)
    _refuse_own_files(settings, output)
    config, model = read_config(settings.workdir), load_run(settings.workdir)
    heads = find_multi_head(model)
    labels = read_labels(settings.workdir, (heads.num_heads, heads.num_clusters))
    parts = [
        _Part(name, match_input(images, model.input.shape[1:]), _num_changes(images, labels))
        for name, images in _images(settings, config)
    ]
    num_images = sum(len(part.images) for part in parts)
    if settings.balanced and num_images < heads.num_clusters:
        raise ConfigError(f"--balanced needs as many images as clusters: {num_images} images, {heads.num_clusters} clusters")
    potentials, lam = labels["potentials"] if settings.potentials else None, float(labels["lam"])
    scrutiny = Scrutiny(labels["labels"], labels["num_changes"], labels["num_relabellings"], num_clusters=heads.num_clusters)
    look_first: list[tuple[float, str]] = []
    with contextlib.ExitStack() as stack:
        blocks = _blocks(model, parts, settings)
        clusters = None
        if settings.balanced:
            directory = stack.enter_context(tempfile.TemporaryDirectory(prefix=f".unfinished-{output.name}-", dir=output.parent))
            kept = _kept_on_disk(blocks, pathlib.Path(directory), num_images, model)
            clusters, potentials = _balanced(kept, heads, config, labels["potentials"], lam=lam, label_memory=settings.label_memory)
            blocks = _blocks_of(kept, parts, settings)
        writer = stack.enter_context(LabelWriter(output))
        done = 0
        for block in blocks:
            some = slice(done, done + len(block.embedding))
            columns = _columns(block, heads, potentials, lam, None if clusters is None else clusters[some], scrutiny)
            look_first = _worst(look_first, columns)
            if settings.embeddings:
                columns["embedding"] = block.embedding
            if len(parts) == 1:
                del columns["split"]
            writer.write(columns)
            done = some.stop
    return _summary(output, num_images, columns, look_first)


def _refuse_own_files(settings: LabelConfig, output: pathlib.Path) -> None:
    """Raises:
    ConfigError: the file is one of the run's, or the data set itself.
    """
    read = [pathlib.Path(absolute_path(settings.workdir)) / name for name in RUN_FILES]
    read.append(pathlib.Path(absolute_source(settings.dataset).partition(":")[2]))
    if output.resolve() in [path.resolve() for path in read]:
        raise ConfigError(f"--output={settings.output} is read by this very command: name another file")


def _images(settings: LabelConfig, config: SelaConfig) -> list[tuple[str, ImageSet]]:
    """Split by split, as they are."""
    cache_dir = absolute_cache(settings.cache_dir) if settings.cache_dir else config.cache_dir
    if not settings.dataset:
        data = load_data(dataclasses.replace(config, data_dir=settings.data_dir or config.data_dir, cache_dir=cache_dir))
        return [("train", data.train), ("eval", data.held_out)]
    splits = load_source(
        absolute_source(settings.dataset),
        SourceOptions(
            data_dir=settings.data_dir or config.data_dir,
            download=settings.download,
            skip_bad_images=settings.skip_bad_images,
            memory_limit=int(settings.memory_limit * 2**30),
            cache_dir=cache_dir,
        ),
        tell=tell,
    )
    for line in splits.report:
        print(line, flush=True)
    return [("train", splits.train)] + ([("eval", splits.eval)] if splits.eval is not None else [])


def _num_changes(images: ImageSet, labels: Mapping[str, np.ndarray]) -> np.ndarray:
    """See `_Part`: known if all that the run was trained on are among `images`, by their names or rows, and are still the same."""
    if images.names is not None and "names" in labels:
        names = labels["names"].tolist()
        trained = np.array(match_names(names, images.names))
    else:
        names = None
        places = {row: place for place, row in enumerate(images.rows.tolist())}
        trained = np.array([places.get(row, -1) for row in labels["source_rows"].tolist()])
    found = np.full(len(images), np.nan, np.float32)
    if trained.min() < 0:
        return found
    same = images.take(trained)
    if names is not None:
        # the fingerprint is of the names as the run had them, perhaps in another Unicode form
        same = dataclasses.replace(same, names=tuple(names))
    if same.fingerprint() == str(labels["data_fingerprint"]):
        found[trained] = labels["num_changes"].sum(axis=0)
    return found


def _blocks(model: keras.Model, parts: list[_Part], settings: LabelConfig) -> Iterator[_Block]:
    """Through the network, a batch at a time."""
    cut = cut_at(model, EMBEDDING, find_multi_head(model).input)
    forward = tf.function(lambda images: cut(images, training=False), reduce_retracing=True)
    total = sum(len(part.images) for part in parts)
    with tqdm(total=total, unit="image", disable=None, dynamic_ncols=True, leave=False) as bar:
        for part in parts:
            size, start = tuple(model.input.shape[1:-1]), 0
            for images, _ in inference_batches(part.images, size=size, batch_size=settings.batch_size, in_order=True):
                embedding, head_inputs = (tf.cast(values, tf.float32).numpy() for values in forward(images))
                yield _Block(part, start, embedding, head_inputs)
                start += len(embedding)
                bar.update(len(embedding))


class _Kept(NamedTuple):
    """Of all images, in files."""

    embedding: np.ndarray
    head_inputs: np.ndarray


def _kept_on_disk(blocks: Iterator[_Block], directory: pathlib.Path, num_images: int, model: keras.Model) -> _Kept:
    """What `blocks` yield.

    Raises:
        ConfigError: there is not so much room.
    """
    widths = [model.get_layer(EMBEDDING).output.shape[-1], find_multi_head(model).input.shape[-1]]
    size, free = 4 * num_images * sum(widths), shutil.disk_usage(directory).free
    print(f"features of {num_images} images are kept on disk meanwhile: {size / 1e6:.1f} MB in {directory.parent}", flush=True)
    if size > free:
        raise ConfigError(f"features of {size / 1e9:.1f} GB do not fit into {directory.parent}, which has {free / 1e9:.1f} GB left")
    files = [
        np.lib.format.open_memmap(directory / name, "w+", np.float32, (num_images, width))
        for name, width in zip(_Kept._fields, widths, strict=True)
    ]
    kept, done = _Kept(*files), 0
    for block in blocks:
        kept.embedding[done : done + len(block.embedding)] = block.embedding
        kept.head_inputs[done : done + len(block.embedding)] = block.head_inputs
        done += len(block.embedding)
    return kept


def _balanced(
    kept: _Kept, heads: MultiHead, config: SelaConfig, start: np.ndarray, *, lam: float, label_memory: float
) -> tuple[np.ndarray, np.ndarray]:
    """(clusters [N, T], exactly balanced; potentials [T, K])."""
    solved = []
    for head in range(heads.num_heads):
        assignment = assign_labels(
            LinearLogits(kept.head_inputs, heads.head_kernel(head), heads.head_bias(head)),
            lam=lam,
            tolerance=config.transport_tolerance,
            max_iterations=config.transport_max_iterations,
            initial_potentials=start[head],
            marginals=config.marginals,
            memory_limit=label_memory * 2**30,
        )
        print(
            f"head {head}: {assignment.num_iterations} iterations, clusters of {assignment.sizes.min()} to {assignment.sizes.max()} images"
            + (
                ""
                if assignment.converged
                else f"; NOT CONVERGED (marginal error {assignment.marginal_error:.1e}), yet balanced exactly"
            ),
            flush=True,
        )
        solved.append(assignment)
    return np.stack([one.labels for one in solved], axis=1), np.stack([one.potentials for one in solved])


def _blocks_of(kept: _Kept, parts: list[_Part], settings: LabelConfig) -> Iterator[_Block]:
    """What was kept, as `_blocks` had it."""
    done = 0
    for part in parts:
        for start in range(0, len(part.images), settings.batch_size):
            some = slice(done, done + min(settings.batch_size, len(part.images) - start))
            yield _Block(part, start, np.array(kept.embedding[some]), np.array(kept.head_inputs[some]))
            done = some.stop


def _columns(
    block: _Block,
    heads: MultiHead,
    potentials: np.ndarray | None,
    lam: float,
    clusters: np.ndarray | None,
    scrutiny: Scrutiny,
) -> dict[str, np.ndarray]:
    """All but the embedding."""
    said = opinions(heads(block.head_inputs), potentials, lam=lam, clusters=clusters)
    part, some = block.part, slice(block.start, block.start + len(block.head_inputs))
    columns: dict[str, np.ndarray] = {}
    if part.images.names is not None:
        columns["name"] = np.array(part.images.names[some])
    else:
        columns["index"] = part.images.rows[some]
    columns["split"] = np.full(len(block.head_inputs), part.name)
    if part.images.classes is not None:
        numbers, names = part.images.classes[some], part.images.class_names
        columns["class"] = numbers if names is None else np.array(names)[numbers]
    for head in range(heads.num_heads):
        suffix = f"_{head}" if heads.num_heads > 1 else ""
        for name, values in said._asdict().items():
            columns[name + suffix] = np.asarray(values)[:, head]
    disagreement = scrutiny.disagreement(np.asarray(said.cluster))
    if heads.num_heads > 1:
        columns["disagreement"] = disagreement
    columns["num_changes"] = part.num_changes[some]
    columns["look_here_first"] = scrutiny.look_here_first(said.margin.numpy(), disagreement, columns["num_changes"])
    return columns


def _worst(before: list[tuple[float, str]], columns: Columns) -> list[tuple[float, str]]:
    """The images that are to be looked at first, among those of before and these."""
    scores = columns["look_here_first"]
    here = [(float(scores[i]), _called(columns, i)) for i in np.argsort(-scores)[:_SHOWN]]
    return sorted(before + here, key=lambda pair: -pair[0])[:_SHOWN]


def _called(columns: Columns, i: int) -> str:
    """The i-th image, for a line of a table."""
    if "index" in columns:
        return f"{columns['index'][i]} ({columns['split'][i]})"
    # the name of a file may break lines
    return repr(str(columns["name"][i]))[1:-1]


def _summary(output: pathlib.Path, num_images: int, columns: Columns, look_first: list[tuple[float, str]]) -> str:
    rows = [[name, f"{score:.3f}"] for score, name in look_first]
    return (
        f"{num_images} images labelled: {output}, {output.stat().st_size / 1e6:.1f} MB, columns {', '.join(columns)}\n\n"
        f"{markdown(['look here first', 'score'], rows)}"
    )
