"""The page of a run, report.html: its images, what the network says of them, and what to look at first."""

from __future__ import annotations

import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import keras
import numpy as np
import tensorflow as tf

from sela_tf.data.batch_sizes import EVALUATION_BATCH
from sela_tf.data.csv_rows import read_csv
from sela_tf.data.image_set import ImageSet
from sela_tf.data.left_out import ImageNote
from sela_tf.data.pipeline import inference_batches
from sela_tf.evaluation.knn import neighbours
from sela_tf.evaluation.protocol import sample_rows
from sela_tf.evaluation.review import review
from sela_tf.models.build import cut_at
from sela_tf.models.heads import find_multi_head
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.reporting.page.images import ShownImages
from sela_tf.reporting.page.sprites import thumbnail_size
from sela_tf.reporting.page.write import PageContent, write_page
from sela_tf.reporting.small_pictures import shrunk
from sela_tf.runs.cluster_names import named
from sela_tf.runs.labels import read_labels
from sela_tf.runs.names import LEFT_OUT, PAGE
from sela_tf.runs.network import load_run, read_description
from sela_tf.serving.disagreement import HeadDisagreement
from sela_tf.serving.predictions import predictions
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import Data

MOST_SHOWN, MOST_HELD_OUT = 50_000, 10_000
"""The most images that a page shows, and the most held-out ones among them."""
_SAMPLE_KEY = 5
"""Key of the random numbers that draw them, apart from those of the samples of the evaluation."""
NEAREST_SHOWN, FIRST_SHOWN = 8, 500
"""Nearest images of each one on a page, and entries of what to look at first."""


class Pictures(NamedTuple):
    """Pictures that stand for the vectors of a run."""

    train: ImageSet
    """Pictures of the training vectors, in their order."""
    held_out: ImageSet
    """Pictures of the held-out vectors."""
    size: tuple[int, ...]
    """(height, width) that they are read at."""


class _Part(NamedTuple):
    """The outputs for the training or the held-out images on a page."""

    embedding: np.ndarray
    clusters: np.ndarray
    margins: np.ndarray
    thumbnails: np.ndarray | None


def write_run_page(
    workdir: pathlib.Path,
    config: SelaConfig,
    data: Data,
    report: Mapping[str, Any],
    results: Mapping[str, Any],
    *,
    pictures: Pictures | None = None,
    image_names: Mapping[str, str] | None = None,
) -> None:
    """Writes report.html of a run whose network and labels are written.

    Args:
        workdir: the directory of the run.
        config: the settings of the run.
        data: the images of the run.
        report: the contents of report.json.
        results: the contents of results.json.
        pictures: pictures of a run on vectors; None for none.
        image_names: names of single images by their source, as names.csv has them.
    """
    # The network is read as it was written, on one device.
    model = load_run(workdir)
    heads = find_multi_head(model)
    labels = read_labels(workdir, (heads.num_heads, heads.num_clusters))
    held_out = _shown(len(data.held_out), MOST_HELD_OUT, config.seed)
    train = _shown(len(data.train), MOST_SHOWN - len(held_out), config.seed)
    sets = [data.train.take(train), data.held_out.take(held_out)]
    if pictures is not None:
        pictures = pictures._replace(train=pictures.train.take(train), held_out=pictures.held_out.take(held_out))
    parts, thumbnails = _read(model, sets, data.size, labels, labels["labels"][:, train].T, pictures)
    shown_images, found = _images(sets, parts, labels)
    names = named(labels, heads.num_heads, heads.num_clusters)
    content = PageContent(
        run_id=_digest(labels["labels"].tobytes() + str(labels["data_fingerprint"]).encode()),
        names_id=_digest(json.dumps([names.tolist(), dict(image_names or {})]).encode()),
        report=report,
        protocols=_protocols(results, report),
        settings=results["config"],
        left_out=_left_out(workdir),
        images=shown_images,
        sizes=np.stack([np.bincount(head, minlength=heads.num_clusters) for head in labels["labels"]]),
        class_names=data.train.class_names,
        cluster_names=names,
        image_names=image_names or {},
        review=found,
        notes=_notes(data, sets, thumbnails, read_description(workdir).image_shape),
    )
    write_page(workdir / PAGE, content)


def _digest(data: bytes) -> str:
    """Returns a short digest."""
    return hashlib.sha256(data).hexdigest()[:16]


def _shown(count: int, most: int, seed: int) -> np.ndarray:
    """Returns the rows of at most `most` of `count` images, increasing."""
    sample = sample_rows(count, most, [seed, _SAMPLE_KEY])
    return np.arange(count) if sample is None else sample


def _read(
    model: keras.Model,
    sets: list[ImageSet],
    size: tuple[int, ...],
    labels: Mapping[str, np.ndarray],
    clusters: np.ndarray,
    pictures: Pictures | None,
) -> tuple[list[_Part], tuple[int, int] | None]:
    """Returns the outputs for the training and the held-out images of a page, and (height, width) of their thumbnails; None without any.

    Args:
        model: the network.
        sets: training and held-out images.
        size: (height, width) that the network sees.
        labels: arrays of labels.npz.
        clusters: clusters [M, T] of the training images.
        pictures: pictures of these images, where they are vectors; None for none.
    """
    drawn, drawn_size = (sets, size) if pictures is None else ([pictures.train, pictures.held_out], pictures.size)
    thumbnails = None
    if not drawn[0].is_vectors:
        thumbnails = thumbnail_size(sum(map(len, sets)), drawn_size, drawn[0].channels)
    of_views = thumbnails if pictures is None else None
    parts = [
        _outputs(model, images, size, labels, clusters=given, thumbnails=of_views)
        for images, given in zip(sets, (clusters, None), strict=True)
    ]
    if pictures is not None and thumbnails is not None:
        parts = [
            part._replace(thumbnails=_thumbnails(images, drawn_size, thumbnails)) for part, images in zip(parts, drawn, strict=True)
        ]
    return parts, thumbnails


def _outputs(
    model: keras.Model,
    images: ImageSet,
    size: tuple[int, ...],
    labels: Mapping[str, np.ndarray],
    *,
    clusters: np.ndarray | None,
    thumbnails: tuple[int, int] | None,
) -> _Part:
    """Returns the outputs of the network for images, and their thumbnails.

    Args:
        model: the network.
        images: M images.
        size: (height, width) that it sees.
        labels: arrays of labels.npz.
        clusters: clusters [M, T] that the images have; None for those that the transport gives them.
        thumbnails: (height, width) of thumbnails; None for none.
    """
    heads = find_multi_head(model)
    network, potentials, lam = cut_at(model, EMBEDDING, heads.output), labels["potentials"], float(labels["lam"])

    @tf.function(reduce_retracing=True)
    def forward(views: tf.Tensor, given: tf.Tensor | None) -> tuple[tf.Tensor, ...]:
        embedding, logits = network(views, training=False)
        predicted = predictions(logits, potentials, lam=lam, clusters=given)
        small = () if thumbnails is None else (shrunk(views, thumbnails),)
        return tf.cast(embedding, tf.float32), predicted.cluster, predicted.margin, *small

    found: list[tuple[np.ndarray, ...]] = []
    start = 0
    for views, _ in inference_batches(images, size=size, batch_size=EVALUATION_BATCH, in_order=True):
        stop = start + len(views)
        given = None if clusters is None else tf.constant(clusters[start:stop], tf.int64)
        found.append(tuple(values.numpy() for values in forward(views, given)))
        start = stop
    embedding, own, margins, *small = (np.concatenate(values) for values in zip(*found, strict=True))
    return _Part(embedding, own, margins, small[0] if small else None)


def _thumbnails(images: ImageSet, size: tuple[int, ...], thumbnails: tuple[int, int]) -> np.ndarray:
    """Returns the thumbnails of images, uint8 [M, h, w, C]."""
    batches = inference_batches(images, size=size, batch_size=EVALUATION_BATCH, in_order=True)
    return np.concatenate([shrunk(views, thumbnails).numpy() for views, _ in batches])


def _images(sets: list[ImageSet], parts: list[_Part], labels: Mapping[str, np.ndarray]) -> tuple[ShownImages, dict[str, Any]]:
    """Returns the images of a page, training images first, and what to look at first among them."""
    embedding, clusters, margins = (np.concatenate([getattr(part, name) for part in parts]) for name in _Part._fields[:3])
    thumbnails = None if parts[0].thumbnails is None else np.concatenate([part.thumbnails for part in parts])
    classes = np.concatenate([images.classes for images in sets]) if all(images.classes is not None for images in sets) else None
    held_out = np.repeat([False, True], [len(images) for images in sets])
    # Held-out images without names that have a source of their own have the rows of training images.
    can_mark = sets[0].names is not None or not len(np.intersect1d(sets[0].rows, sets[1].rows))
    num_clusters = labels["potentials"].shape[1]
    disagreement = HeadDisagreement(labels["labels"], num_clusters=num_clusters).of(clusters)
    near = neighbours(embedding)
    found = review(
        near,
        embedding=embedding,
        thumbnails=thumbnails,
        classes=classes,
        clusters=clusters,
        margins=margins,
        disagreement=disagreement,
        held_out=held_out,
    )
    images = ShownImages(
        sources=[
            name for each, told in zip(sets, ("", "" if can_mark else "held out, "), strict=True) for name in _sources(each, told)
        ],
        can_mark=~held_out | can_mark,
        held_out=held_out,
        clusters=clusters.T,
        margins=margins.T,
        embedding=embedding,
        disagreement=disagreement,
        nearest=near.nearest[:, :NEAREST_SHOWN],
        classes=classes,
        thumbnails=thumbnails,
    )
    return images, {
        "first": [(entry.image, entry.reason, entry.group) for entry in found.first[:FIRST_SHOWN]],
        "rankings": {reason: np.argsort(order.ranks)[:FIRST_SHOWN].tolist() for reason, order in found.rankings.items()},
        "duplicates": [{"images": group.images, "kind": group.kind, "spans": group.spans} for group in found.duplicates],
    }


def _sources(images: ImageSet, told: str) -> list[str]:
    """Returns what names.csv calls the images: their names, or their rows in the source, with `told` before them."""
    return list(images.names) if images.names is not None else [f"{told}{row}" for row in images.rows]


def _protocols(results: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """Returns the lines below the table of figures."""
    lines = [results["trained"].get("protocol"), report["table_note"]]
    if protocol := results.get("without_classes", {}).get("protocol"):
        lines.append(f"Views: {protocol}.")
    lines.append("±: half of the 95 % interval.")
    return [line for line in lines if line]


def _left_out(workdir: pathlib.Path) -> list[list[str]]:
    """Returns the rows of left_out.csv, if there is one."""
    path = workdir / LEFT_OUT
    return [row.cells for row in read_csv(path, [ImageNote._fields], setting=str(path)).rows] if path.exists() else []


def _notes(data: Data, sets: list[ImageSet], thumbnails: tuple[int, int] | None, shape: tuple[int, ...]) -> list[str]:
    """Returns lines that say what the page leaves out."""
    lines = []
    for kind, all_of_them, shown in zip(("training", "held-out"), (data.train, data.held_out), sets, strict=True):
        if len(shown) < len(all_of_them):
            lines.append(
                f"{len(shown)} of {len(all_of_them)} {kind} images are on this page, drawn at random; neighbours and duplicates are looked for "
                "among these. Sizes of clusters count all training images."
            )
    if thumbnails is not None and len(shape) == 3 and thumbnails != tuple(shape[:2]):
        lines.append(f"Thumbnails have {thumbnails[0]} x {thumbnails[1]} pixels; the network sees {shape[0]} x {shape[1]}.")
    return lines
