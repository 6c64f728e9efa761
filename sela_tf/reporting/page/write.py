"""Writes the page of a run: its data packed, its static parts by a template."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import importlib.resources
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
import numpy as np

from sela_tf.files.atomic import write_whole
from sela_tf.reporting.page.charts import HEIGHT, WIDTH, charts_of
from sela_tf.reporting.page.clusters import ClusterTable, describe_clusters
from sela_tf.reporting.page.images import ShownImages
from sela_tf.reporting.page.sprites import CELLS, COLUMNS, Sprites, make_sprites

LEFT_OUT_SHOWN = 500
"""The most images that were left out whose names are on a page."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class PageContent:
    """All that a page shows of a run."""

    run_id: str
    """A digest of labels and images, under which a browser keeps the names that were typed."""
    names_id: str
    """A digest of the names that the page was made with, by which it knows what was typed into an earlier page of the run."""
    report: Mapping[str, Any]
    """The contents of report.json."""
    protocols: Sequence[str]
    """Lines that say how the figures were taken."""
    settings: Mapping[str, Any]
    """The settings of the run."""
    left_out: Sequence[Sequence[str]]
    """Images that were left out: (name, reason)."""
    images: ShownImages
    sizes: np.ndarray
    """Training images of each cluster, of all, integers [T, K]."""
    class_names: Sequence[str] | None
    cluster_names: np.ndarray
    """Names of clusters, str [T, K]; "" where there is none."""
    image_names: Mapping[str, str]
    """Names of single images by their source, as names.csv has them."""
    review: Mapping[str, Any]
    """The images to look at first: "first", triples of an image, its reason and the number of its group of duplicates or -1; "rankings", images
    by reason, the most urgent first; "duplicates", groups with "images", "kind" and "spans"."""
    notes: Sequence[str]
    """Lines that say what the page leaves out."""


def write_page(path: pathlib.Path, content: PageContent) -> None:
    """Writes the page into the file `path`, whole or not at all."""
    content, places = _ordered(content)
    tables = [describe_clusters(content.images, head, sizes) for head, sizes in enumerate(content.sizes)]
    sprites = None if content.images.thumbnails is None else make_sprites(content.images.thumbnails)
    parts = {**_image_arrays(content.images), **_cluster_arrays(tables)}
    facts = _facts(content, tables, sprites, parts, places)
    packed = {name: _packed(values.tobytes()) for name, values in parts.items()}
    packed["facts"] = _packed(json.dumps(facts, ensure_ascii=False).encode())
    files = [] if sprites is None else [base64.b64encode(file).decode() for file in sprites.files]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("sela_tf.reporting.page", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    text = environment.get_template("page.html").render(
        content=content,
        charts=charts_of(content.report),
        chart_width=WIDTH,
        chart_height=HEIGHT,
        left_out_shown=content.left_out[:LEFT_OUT_SHOWN],
        style=_own_file("page.css"),
        script=_own_file("page.js"),
        packed=packed,
        sprites=files,
    )
    write_whole(path, text)


def _own_file(name: str) -> str:
    """Returns the text of a file beside this one."""
    return importlib.resources.files("sela_tf.reporting.page").joinpath(name).read_text()


def _ordered(content: PageContent) -> tuple[PageContent, np.ndarray]:
    """Returns the content with the images in the order of their clusters under head 0, and the new place of each.

    The members of a cluster then share a sprite or two.
    """
    images = content.images
    order = np.lexsort((-images.margins[0], images.clusters[0]))
    places = np.empty(len(order), np.int64)
    places[order] = np.arange(len(order))
    return dataclasses.replace(content, images=images.take(order)), places


def _image_arrays(images: ShownImages) -> dict[str, np.ndarray]:
    """Returns the arrays of all images in as few bytes as hold them."""
    arrays = {
        "held_out": images.held_out.astype(np.uint8),
        "can_mark": images.can_mark.astype(np.uint8),
        "clusters": _small(images.clusters),
        "margins": np.clip(np.rint(images.margins * 127), -127, 127).astype(np.int8),
        "disagreement": np.clip(np.rint(images.disagreement * 255), 0, 255).astype(np.uint8),
        "nearest": _small(images.nearest),
    }
    if images.classes is not None:
        # 0 stands for an image without a class.
        arrays["classes"] = _small(images.classes + 1)
    return arrays


def _cluster_arrays(tables: Sequence[ClusterTable]) -> dict[str, np.ndarray]:
    """Returns the arrays of all clusters, those of the heads one after the other."""
    arrays = {
        "sizes": np.stack([table.sizes for table in tables]).astype(np.uint32),
        "confidence": np.stack([table.confidence for table in tables]),
        "cluster_disagreement": np.stack([table.disagreement for table in tables]),
        "cluster_neighbours": np.stack([table.neighbours for table in tables]).astype(np.int32),
        "typical": _small(np.stack([table.typical for table in tables])),
    }
    entropies = [table.entropy for table in tables if table.entropy is not None]
    if entropies:
        arrays["entropy"] = np.stack(entropies)
    for head, table in enumerate(tables):
        arrays[f"merges_{head}"] = _small(table.merges)
    return arrays


def _facts(
    content: PageContent,
    tables: Sequence[ClusterTable],
    sprites: Sprites | None,
    parts: Mapping[str, np.ndarray],
    places: np.ndarray,
) -> dict[str, Any]:
    """Returns what the script of the page needs besides the arrays."""
    images = content.images
    names = {
        f"{head},{cluster}": str(content.cluster_names[head, cluster]) for head, cluster in np.argwhere(content.cluster_names != "")
    }
    return {
        "run": content.run_id,
        "page": content.names_id,
        "sources": list(images.sources),
        "num_heads": len(images.clusters),
        "num_clusters": content.sizes.shape[1],
        "num_nearest": images.nearest.shape[1],
        "class_names": None if content.class_names is None else list(content.class_names),
        "sprites": None
        if sprites is None
        else {"kind": sprites.kind, "height": sprites.height, "width": sprites.width, "columns": COLUMNS, "cells": CELLS},
        "proposed": [table.proposed for table in tables],
        "names": {"clusters": names, "images": dict(content.image_names)},
        "review": _moved(content.review, places),
        "kinds": {name: values.dtype.name for name, values in parts.items()},
    }


def _moved(review: Mapping[str, Any], places: np.ndarray) -> dict[str, Any]:
    """Returns the review with the places of images on the page instead of their numbers."""
    return {
        "first": [[int(places[image]), reason, group] for image, reason, group in review["first"]],
        "rankings": {reason: places[images].tolist() for reason, images in review["rankings"].items()},
        "duplicates": [{**group, "images": [int(places[image]) for image in group["images"]]} for group in review["duplicates"]],
    }


def _small(values: np.ndarray) -> np.ndarray:
    """Returns whole numbers from 0 in the smallest type that holds them."""
    return values.astype(np.min_scalar_type(max(int(values.max(initial=0)), 1)))


def _packed(data: bytes) -> str:
    """Returns bytes as text for a page, compressed."""
    return base64.b64encode(gzip.compress(data, 9, mtime=0)).decode()
