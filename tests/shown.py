"""The content of a page, made without a run: images, clusters and names, some of which would break a page that did not escape them."""

from __future__ import annotations

import numpy as np

from sela_tf.reporting.page.images import ShownImages
from sela_tf.reporting.page.write import PageContent

EVIL = '</script><img src=x onerror="document.title=1">&amp;\u2028, "x"'


def shown_images() -> ShownImages:
    """600 images in 9 clusters of two heads, of which cluster 4 of head 0 is empty."""
    rng, count = np.random.default_rng(0), 600
    first = rng.choice([0, 1, 2, 3, 5, 6, 7, 8], count)
    centres = rng.normal(size=(9, 5)) * 3
    nearest = np.argsort(rng.random((count, count)), axis=1)[:, :4]
    return ShownImages(
        sources=[f"{i}.png" for i in range(count - 1)] + [EVIL],
        held_out=rng.random(count) < 0.2,
        clusters=np.stack([first, rng.integers(0, 9, count)]),
        margins=rng.random((2, count)) * 2 - 1,
        embedding=(centres[first] + rng.normal(size=(count, 5))).astype(np.float32),
        disagreement=rng.random(count),
        nearest=nearest,
        can_mark=np.arange(count) != 4,
        classes=rng.integers(0, 3, count),
        thumbnails=np.kron(rng.integers(0, 256, (count, 2, 2, 3), dtype=np.uint8), np.ones((1, 8, 8, 1), np.uint8)),
    )


def page_content(images: ShownImages) -> PageContent:
    """A page of these images."""
    relabellings = [
        [
            {"kind": "relabel", "step": 3 * i, "changed": 1 / (i + 1), "objective_before": 2.0, "objective_after": 1.0}
            for i in range(4)
        ]
    ] * 2
    names = np.full((2, 9), "", dtype="<U99")
    names[0, 3] = EVIL
    return PageContent(
        run_id="abc",
        names_id="def",
        report={
            "title": EVIL,
            "verdict": "It worked",
            "warnings": [EVIL],
            "num_clusters": 9,
            "loss": [[1, 2.0], [2, 1.5]],
            "knn": [],
            "relabellings": relabellings,
            "cluster_sizes": [{"labels": [70] * 9, "network": [80, 60, *[70] * 7]}] * 2,
            "table": [["", "trained"], ["kNN", "0.9"]],
            "table_note": "",
            "no_figures": None,
        },
        protocols=["as taken"],
        settings={"dataset": EVIL},
        left_out=[[EVIL, "damaged"]],
        images=images,
        sizes=np.stack([np.bincount(head, minlength=9) for head in images.clusters]),
        class_names=["cat", "dog", EVIL],
        cluster_names=names,
        image_names={EVIL: ""},
        review={
            "first": [(599, "duplicate", 0), (5, "outlier", -1)],
            "rankings": {"low_margin": [7, 599]},
            "duplicates": [{"images": (1, 599), "kind": "near", "spans": True}],
        },
        notes=[],
    )
