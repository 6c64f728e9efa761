"""The report of a finished run: report.json holds the numbers, report.png and galleries/ the pictures, report.html is a page of all."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from typing import Any

import numpy as np

from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches
from sela_tf.evaluation.outputs import EvaluationOutputs
from sela_tf.files.atomic import whole_file, write_whole
from sela_tf.reporting.gallery import GallerySource, choose_gallery
from sela_tf.reporting.history import training_history
from sela_tf.reporting.pictures import draw_gallery, draw_report
from sela_tf.reporting.tables import report_figures, report_table
from sela_tf.reporting.verdict import many_clusters_note, verdict_line
from sela_tf.runs.names import GALLERIES, METRICS, PICTURE, REPORT
from sela_tf.runs.workdir import Workdir
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.evaluation import protocol_of
from sela_tf.training.images import Data, shape_in_words
from sela_tf.training.page import Pictures, write_run_page


def write_report(
    directory: Workdir,
    config: SelaConfig,
    data: Data,
    labels: np.ndarray,
    results: Mapping[str, Any],
    outputs: EvaluationOutputs | None,
    *,
    with_page: bool = True,
    pictures: Pictures | None = None,
    image_names: Mapping[str, str] | None = None,
) -> None:
    """Writes report.png, galleries/, report.html and report.json of a run. Runs on vectors have no galleries.

    Args:
        directory: the directory of the run.
        config: the settings of the run.
        data: the images of the run.
        labels: the labels of the final transport, integers [T, N].
        results: the contents of results.json.
        outputs: the outputs of the network on the images that it was evaluated on; None leaves out the pictures that need them.
        with_page: write report.html, for which the directory must hold the network and the labels.
        pictures: pictures of a run on vectors, for report.html; None for none.
        image_names: names of single images by their source, for report.html.

    Raises:
        ConfigError: metrics.jsonl is damaged.
    """
    num_heads, num_clusters = config.num_heads, config.num_clusters
    rows = directory.rows()
    try:
        history = training_history(rows, num_heads=num_heads)
    except ValueError as error:
        raise ConfigError(f"{directory.path / METRICS} is damaged ({error}): restore it, or remove this row") from error
    shown = _gallery(config, data, labels[0], outputs)
    plain = [None] * num_heads if outputs is None else outputs.training.clusters
    report = {
        "title": (
            f"{data.train.name}: {len(data.train)} images, {shape_in_words(data)}, {config.backbone}, "
            f"{num_heads} x {num_clusters} clusters, {config.epochs} epochs"
        ),
        "verdict": verdict_line(results),
        "warnings": [row["message"] for row in rows if row["kind"] == "warning"],
        "num_clusters": num_clusters,
        "num_classes": None if data.train.classes is None else len(np.unique(data.train.classes)),
        **history,
        "cluster_sizes": [
            {"labels": _sizes(head, num_clusters), "network": [] if own is None else _sizes(own, num_clusters)}
            for head, own in zip(labels, plain, strict=True)
        ],
        "figures": report_figures(results),
        "table": report_table(results),
        "table_note": many_clusters_note(results),
        "no_figures": results["trained"].get("reason"),
        "gallery": shown,
    }
    with whole_file(directory.path / PICTURE) as unfinished:
        draw_report(report, unfinished)
    shutil.rmtree(directory.path / GALLERIES, ignore_errors=True)
    if shown["best"] and not data.train.is_vectors:
        _draw_galleries(directory, data, shown)
    if with_page:
        write_run_page(directory.path, config, data, report, results, pictures=pictures, image_names=image_names)
    # This file comes last: with it the report counts as drawn.
    write_whole(directory.path / REPORT, json.dumps(report, indent=1) + "\n")


def _gallery(
    config: SelaConfig, data: Data, labels: np.ndarray, outputs: EvaluationOutputs | None
) -> dict[str, list[dict[str, Any]]]:
    """The galleries of head 0, whose labels [N] are given; empty where the network was shown nothing."""
    if outputs is None:
        return {"best": [], "random": []}
    protocol = protocol_of(config, data)
    source = GallerySource(
        labels,
        config.num_clusters,
        data.train.classes,
        data.train.class_names,
        confidence=outputs.training.confidence[0],
        held_out_clusters=outputs.held_out.corrected[0],
        held_out_confidence=outputs.held_out.confidence[0],
        training_sample=protocol.training_sample,
        held_out_sample=protocol.held_out_sample,
    )
    return choose_gallery(source, seed=config.seed)


def _draw_galleries(directory: Workdir, data: Data, shown: Mapping[str, Any]) -> None:
    (directory.path / GALLERIES).mkdir()
    order = "lowest entropy" if data.train.classes is not None else "highest confidence"
    for kind, name in (("best", order), ("random", "random")):
        for part, images, key, words in (
            ("training", data.train, "members", _words),
            ("held_out", data.held_out, "held_out_members", _words_of_held_out),
        ):
            clusters = shown[kind]
            if not clusters:
                # All clusters are among the best.
                continue
            pixels = _pixels(images, [index for cluster in clusters for index in cluster[key]], data.size)
            ends = np.cumsum([len(cluster[key]) for cluster in clusters])
            rows = list(zip([words(cluster) for cluster in clusters], np.split(pixels, ends[:-1]), strict=True))
            title = f"{'clusters of ' * (kind == 'best')}{name}{' clusters' * (kind != 'best')}: {part.replace('_', '-')} images, head 0"
            draw_gallery(title, rows, directory.path / GALLERIES / f"{name.replace(' ', '_')}_{part}.png")


def _pixels(images: ImageSet, indices: list[int], size: tuple[int, ...]) -> np.ndarray:
    """Returns the pixels of some images as the network sees them, float32 [n, H, W, C]."""
    if not indices:
        return np.empty((0, *size, images.channels), np.float32)
    ((pixels, _),) = inference_batches(images.take(np.array(indices)), size=size, batch_size=len(indices), in_order=True)
    return pixels.numpy()


def _words(cluster: Mapping[str, Any]) -> str:
    words = f"cluster {cluster['cluster']}: {cluster['size']} training images"
    if "entropy" not in cluster:
        return f"{words}, mean confidence {cluster['confidence']:.2f}"
    return f"{words}, {cluster['share']:.0%} of class {cluster['class']}, entropy {cluster['entropy']:.2f}"


def _words_of_held_out(cluster: Mapping[str, Any]) -> str:
    words = f"cluster {cluster['cluster']}: {cluster['held_out_size']} held-out images"
    return f"{words}, mean confidence {cluster['held_out_confidence']:.2f}" if cluster["held_out_size"] else words


def _sizes(clusters: np.ndarray, num_clusters: int) -> list[int]:
    """Returns the sizes of all clusters, the largest first."""
    return np.sort(np.bincount(clusters, minlength=num_clusters))[::-1].tolist()
