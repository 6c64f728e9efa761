"""The end of a run in pictures: report.json, the numbers behind them; report.png; galleries/."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sela_tf.config import SelaConfig
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches
from sela_tf.models.features import FeatureExtractor
from sela_tf.models.heads import find_multi_head
from sela_tf.parts import Data, shape_in_words
from sela_tf.reporting.course import course, gallery
from sela_tf.reporting.pictures import draw_gallery, draw_report
from sela_tf.self_labelling.label_table import LabelTable
from sela_tf.serving.opinions import opinions
from sela_tf.workdir import GALLERIES, PICTURE, REPORT, Workdir, write_whole

_BATCH = 500


def write_report(
    directory: Workdir,
    config: SelaConfig,
    data: Data,
    model: keras.Model,
    labels: LabelTable,
    results: Mapping[str, Any],
    strategy: tf.distribute.Strategy,
) -> None:
    """Draws the run; vectors have no galleries."""
    heads = find_multi_head(model)
    logits = FeatureExtractor(keras.Model(model.inputs, keras.layers.Flatten(name="all_heads")(heads.output)), strategy)

    def clusters(images: ImageSet, potentials: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Of every head [N, T], and head 0's probability of its own."""
        outputs = logits.collect(inference_batches(images, size=data.size, batch_size=_BATCH), len(images))
        outputs = outputs.reshape(len(images), heads.num_heads, heads.num_clusters)
        said = opinions(outputs, potentials, lam=config.lam)
        return said.cluster.numpy(), said.probability.numpy()[:, 0]

    plain, confidence = clusters(data.train, None)
    held_out, _ = clusters(data.held_out, labels.potentials)
    shown = gallery(
        labels.labels[0],
        held_out[:, 0],
        num_clusters=heads.num_clusters,
        classes=data.train.classes,
        class_names=data.train.class_names,
        confidence=confidence,
        seed=config.seed,
    )
    rows = directory.rows()
    report = {
        "title": (
            f"{data.train.name.removeprefix('--dataset=')}: {len(data.train)} images, {shape_in_words(data)}, {config.backbone}, "
            f"{heads.num_heads} x {heads.num_clusters} clusters, {config.epochs} epochs"
        ),
        "verdict": _verdict(results),
        "warnings": [row["message"] for row in rows if row["kind"] == "warning"],
        "num_clusters": heads.num_clusters,
        "num_classes": None if data.train.classes is None else len(np.unique(data.train.classes)),
        **course(rows, num_heads=heads.num_heads),
        "cluster_sizes": [
            {"labels": _sizes(head, heads.num_clusters), "network": _sizes(plain[:, number], heads.num_clusters)}
            for number, head in enumerate(labels.labels)
        ],
        "figures": {column: _figures(results[column]) for column in ("trained", "untrained", "chance")},
        "gallery": shown,
    }
    write_whole(directory.path / REPORT, json.dumps(report, indent=1) + "\n")
    unfinished = directory.path / f".unfinished-{PICTURE}"
    draw_report(report, unfinished)
    os.replace(unfinished, directory.path / PICTURE)
    shutil.rmtree(directory.path / GALLERIES, ignore_errors=True)
    if not data.train.is_vectors:
        _draw_galleries(directory, data, shown)


def _draw_galleries(directory: Workdir, data: Data, shown: Mapping[str, Any]) -> None:
    (directory.path / GALLERIES).mkdir()
    order = "lowest entropy" if data.train.classes is not None else "highest confidence"
    for kind, name in (("best", order), ("random", "random")):
        for part, images, key in (("training", data.train, "members"), ("held_out", data.held_out, "held_out_members")):
            rows = [(_words(cluster), _pixels(images, cluster[key], data.size)) for cluster in shown[kind]]
            if not rows:
                continue  # all clusters are among the best
            title = f"{'clusters of ' * (kind == 'best')}{name}{' clusters' * (kind != 'best')}: {part.replace('_', '-')} images, head 0"
            draw_gallery(title, rows, directory.path / GALLERIES / f"{name.replace(' ', '_')}_{part}.png")


def _pixels(images: ImageSet, indices: list[int], size: tuple[int, ...]) -> np.ndarray:
    """As the network sees them, [n, H, W, C]."""
    if not indices:
        return np.empty((0, *size, images.channels), np.float32)
    ((pixels, _),) = inference_batches(images.take(np.array(indices)), size=size, batch_size=len(indices), in_order=True)
    return pixels.numpy()


def _words(cluster: Mapping[str, Any]) -> str:
    words = f"cluster {cluster['cluster']}: {cluster['size']} training images"
    if "entropy" not in cluster:
        return f"{words}, mean confidence {cluster['confidence']:.2f}"
    return f"{words}, {cluster['share']:.0%} of class {cluster['class']}, entropy {cluster['entropy']:.2f}"


def _sizes(clusters: np.ndarray, num_clusters: int) -> list[int]:
    """The largest first."""
    return np.sort(np.bincount(clusters, minlength=num_clusters))[::-1].tolist()


def _figures(column: Mapping[str, Any]) -> dict[str, float | None]:
    """Of several heads the mean."""
    keys = ("knn", "linear_probe", "nmi", "ami", "ari", "hungarian")
    return {key: None if column[key] is None else float(np.mean(column[key])) for key in keys}


def _verdict(results: Mapping[str, Any]) -> str:
    """What a stranger wants to know first."""
    trained, untrained, chance = (results[column] for column in ("trained", "untrained", "chance"))
    used = min(trained["clusters_used"])
    if trained["knn"] is None:
        return f"{used} of {results['config']['num_clusters']} clusters in use on held-out images; no class labels to judge by"
    gained = trained["knn"] - untrained["knn"]
    words = "better than" if gained > 0.005 else "as good as" if gained > -0.005 else "WORSE THAN"
    return (
        f"kNN {trained['knn']:.3f}, {words} the untrained network's {untrained['knn']:.3f} (chance {chance['knn']:.3f}); NMI "
        f"{np.mean(trained['nmi']):.3f} against {np.mean(untrained['nmi']):.3f}; "
        f"{used} of {results['config']['num_clusters']} clusters in use on held-out images"
    )
