"""A row of the results: a set is planted, a network trained on it by the default command, and its images are ranked."""

from __future__ import annotations

import itertools
import json
import pathlib
import subprocess
import sys
import time
from typing import Any

import numpy as np

from benchmarks.measuring import environment
from benchmarks.planted_faults.judging import SHOWN, as_faults, found, natural_copies, ordered_pairs
from benchmarks.planted_faults.planting import Images, plant
from sela_tf.evaluation.knn import neighbours
from sela_tf.evaluation.review import review

_PEERS = pathlib.Path(__file__).parent / "peers.py"


def prepare(name: str, draw: int, directory: pathlib.Path, sets_dir: pathlib.Path, flags: list[str], threads: int) -> None:
    """Writes planted.npz, faults.json, a run and its labels.npz into a directory, unless they are there."""
    labels = directory / "labels.npz"
    if labels.exists():
        return
    directory.mkdir(parents=True, exist_ok=True)
    planted = plant(name, draw, sets_dir)
    images, splits = planted.images, [np.flatnonzero(planted.images.held_out == held_out) for held_out in (False, True)]
    arrays = {}
    for prefix, rows in zip(("", "eval_"), splits, strict=True):
        arrays |= {f"{prefix}images": images.pixels[rows], f"{prefix}classes": images.classes[rows]}
    np.savez(directory / "planted.npz", **arrays)
    # In the file the training images come first.
    places = np.argsort(np.concatenate(splits))
    faults = [
        each._replace(image=int(places[each.image]), of=int(places[each.of]) if each.of >= 0 else -1) for each in planted.faults
    ]
    (directory / "faults.json").write_text(json.dumps([fault._asdict() for fault in faults]))
    train = [
        f"--dataset=npz:{directory}/planted.npz",
        f"--workdir={directory}/run",
        f"--seed={draw}",
        "--noreport",
        "--evaluate=none",
    ]
    for command in (["train", *train, *flags], ["label", f"--workdir={directory}/run", f"--output={labels}"]):
        subprocess.run(
            [sys.executable, "-m", f"sela_tf.{command[0]}", *command[1:]],
            env=environment(threads),
            stdout=subprocess.DEVNULL,
            check=True,
        )


def make_row(name: str, draw: int, directory: pathlib.Path, peers_python: str, threads: int) -> dict[str, Any]:
    """Ranks the images of a directory of `prepare`; returns the row."""
    with np.load(directory / "planted.npz") as file:
        parts = [np.concatenate([file[kind], file[f"eval_{kind}"]]) for kind in ("images", "classes")]
        images = Images(*parts, np.arange(len(parts[1])) >= len(file["classes"]))
    with np.load(directory / "labels.npz") as file:
        labels = dict(file)
    faults = as_faults(json.loads((directory / "faults.json").read_text()))
    entries, seconds = _ranked(images, labels)
    if peers_python:
        entries |= _peers(images, labels["embedding"], directory, peers_python, threads)
    copies = {method: natural_copies(shown, faults, images.pixels) for method, shown in entries.items()}
    others = {method: list(itertools.compress(shown, np.logical_not(copies[method]))) for method, shown in entries.items()}
    return {
        "set": name,
        "draw": draw,
        "num_images": len(images.classes),
        "num_held_out": int(images.held_out.sum()),
        "seconds": seconds,
        "found": {method: found(shown, faults) for method, shown in entries.items()},
        "natural_copies": {method: sum(each[:SHOWN]) for method, each in copies.items()},
        "found_among_others": {method: found(shown, faults) for method, shown in others.items() if method.startswith("sela_tf")},
        "look_here_first": ordered_pairs(labels["look_here_first"], faults),
    }


def _ranked(images: Images, labels: dict[str, np.ndarray]) -> tuple[dict[str, list[list[int]]], float]:
    """Returns the entries of `review`, with classes and without, and the seconds that it takes with them."""
    heads = ["cluster"] if "cluster" in labels else sorted(name for name in labels if name.startswith("cluster_"))
    given = {
        "embedding": labels["embedding"],
        "thumbnails": images.pixels,
        "clusters": np.stack([labels[head] for head in heads], axis=1),
        "margins": np.stack([labels[head.replace("cluster", "margin")] for head in heads], axis=1),
        "disagreement": labels.get("disagreement", np.zeros(len(images.classes), np.float32)),
        "held_out": images.held_out,
    }
    start = time.perf_counter()
    near = neighbours(labels["embedding"])
    reviews = {"sela_tf": review(near, classes=images.classes, **given)}
    seconds = time.perf_counter() - start
    reviews["sela_tf, no classes"] = review(near, classes=None, **given)
    entries = {}
    for method, each in reviews.items():
        groups = [each.duplicates[entry.group].images if entry.group >= 0 else (entry.image,) for entry in each.first[: 4 * SHOWN]]
        entries[method] = [[*group] for group in groups]
    return entries, seconds


def _peers(
    images: Images, embedding: np.ndarray, directory: pathlib.Path, peers_python: str, threads: int
) -> dict[str, list[list[int]]]:
    """Returns the entries of cleanlab and cleanvision, which are kept in the directory."""
    kept = directory / "peers.json"
    if not kept.exists():
        given = directory / "peers.npz"
        np.savez(given, pixels=images.pixels, classes=images.classes, embedding=embedding)
        command = [peers_python, str(_PEERS), str(given), str(kept)]
        subprocess.run(command, env=environment(threads), check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        given.unlink()
    return json.loads(kept.read_text())
