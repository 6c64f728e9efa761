"""What is to be ingested: which images become which shards, planned before anything is written."""

from __future__ import annotations

import dataclasses
import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from components.data_ingestion.parts import Examples, Images, Part, Prepared, Rejected, Rows, row_name
from components.settings import IngestionSettings
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.listing import LookedAt, walk
from sela_tf.data.record_writer import example_id
from sela_tf.data.sources import existing_path, load_source
from sela_tf.data.sources.folder import arrange
from sela_tf.data.sources.tfds import TfdsSource, open_tfds
from sela_tf.data.splits import hold_out, match_classes
from sela_tf.data.stores import Files

_SETS = ("folder", "idx", "npz", "digits", "synthetic")
"""What becomes an ImageSet as in training; anything else is read once, in its order."""
Look = Callable[[str, Sequence[str]], Sequence[LookedAt]]
"""`look_at` for the files of a folder, by its root and their names; by whoever is at hand."""


class Plan(NamedTuple):
    """All that is to be written."""

    shards: dict[str, list[Part]]
    """By split: what each shard is made of."""
    class_names: tuple[str, ...] | None
    split_rule: str
    rejected: list[Rejected]
    report: tuple[str, ...]


def plan(settings: IngestionSettings, look: Look) -> Plan:
    """Which images become which shards: the same for the same input.

    Raises:
        SourceError: the data set is unknown, empty or damaged.
    """
    kind = settings.dataset.partition(":")[0]
    if kind == "tfrecords":
        return _plan_of_examples(settings)
    if kind in _SETS:
        return _plan_of_sets(settings, look)
    return _plan_of_tfds(settings)


def _plan_of_sets(settings: IngestionSettings, look: Look) -> Plan:
    """Of folders, whose files are looked at first, and of arrays."""
    dataset, memory_limit = settings.dataset, int(settings.memory_limit * 2**30)
    looked: dict[str, LookedAt] = {}
    report: list[str] = []
    rejected: list[Rejected] = []

    def load(source: str, flag: str) -> tuple[ImageSet, ImageSet | None]:
        name = f"{flag}={source}"
        if source.partition(":")[0] == "folder":
            root = existing_path(name, "folder", source.partition(":")[2])
            files = look(root, walk(root, name=name))
            looked.update((file.path, file) for file in files)
            rejected.extend(Rejected(file.name, file.problem) for file in files if file.problem)
            found = arrange(root, files, name=name, skip_bad_images=settings.skip_bad_images)
        else:
            found = load_source(source, flag=flag, memory_limit=memory_limit)
        report.extend(found.report)
        return found.train, found.eval

    train, held_out = load(dataset, "--dataset")
    parts = {"train": (dataset, "train", ""), "eval": (dataset, "eval", "")}
    if settings.eval_dataset:
        if settings.eval_dataset.partition(":")[0] not in _SETS:
            raise SourceError(f"--eval_dataset={settings.eval_dataset} must be a folder or arrays, as --dataset={dataset} is")
        other, other_eval = load(settings.eval_dataset, "--eval_dataset")
        held_out = other if other_eval is None else other_eval
        parts["eval"] = (settings.eval_dataset, "train" if other_eval is None else "eval", "eval_dataset/")
    rule = "the data set's own splits" if not settings.eval_dataset else "--eval_dataset is the split eval"
    if held_out is None:
        train, held_out = hold_out(train, settings.eval_fraction)
        parts["eval"] = parts["train"]
        rule = _rule(settings.eval_fraction)
    if settings.classes == "none":
        train, held_out = _without_classes(train), _without_classes(held_out)
    train, held_out = match_classes(train, held_out)

    def shards(split: str, images: ImageSet) -> list[Part]:
        source, part, prefix = parts[split]
        numbers = [-1] * len(images) if images.classes is None else images.classes.tolist()
        texts = [images.class_names[number] if images.class_names and number >= 0 else "" for number in numbers]
        if images.names is not None:
            names = [prefix + name for name in images.names]
        else:
            names = [row_name(prefix.rstrip("/") or part, row) for row in images.rows.tolist()]
        count = max(1, -(-len(images) // settings.images_per_shard))
        places: list[list[int]] = [[] for _ in range(count)]
        for i, name in enumerate(names):
            places[zlib.crc32(example_id(name).encode()) % count].append(i)
        made: list[Part] = []
        for chosen in places:
            if isinstance(images.store, Files):
                paths = [images.store.paths[i] for i in chosen]
                entries = [(path, names[i], numbers[i], texts[i]) for path, i in zip(paths, chosen, strict=True)]
                made.append(Images(entries, [info for path in paths if (info := looked[path].info) is not None]))
            else:
                rows = images.rows[chosen].tolist()
                made.append(
                    Rows(
                        source, memory_limit, part,
                        [(row, names[i], numbers[i], texts[i]) for row, i in zip(rows, chosen, strict=True)],
                    )
                )  # fmt: skip
        return made

    sets = {"train": train, "eval": held_out}
    return Plan({split: shards(split, images) for split, images in sets.items()}, train.class_names, rule, rejected, tuple(report))


def _plan_of_tfds(settings: IngestionSettings) -> Plan:
    dataset = settings.dataset
    source = open_tfds(f"--dataset={dataset}", dataset, data_dir=settings.data_dir)
    use_classes = settings.classes == "auto"
    if settings.eval_dataset:
        raise SourceError(
            f"--eval_dataset={settings.eval_dataset} cannot be beside --dataset={dataset}: ingest a folder, or leave it out"
        )

    def shards(split: str, prefix: str, held_out: bool, source: TfdsSource = source) -> list[Part]:
        total = source.num_examples(split)
        count = max(1, -(-total // settings.images_per_shard))
        bounds = [i * total // count for i in range(count + 1)]
        fraction = 0.0 if source.eval else settings.eval_fraction
        return [
            Prepared(dataset, settings.data_dir, split, start, stop, prefix, fraction, held_out, use_classes)
            for start, stop in itertools.pairwise(bounds)
        ]

    parts = {"train": shards(source.train, "train", False)}
    parts["eval"] = shards(source.eval, "eval", False) if source.eval else shards(source.train, "train", True)
    rule = "the data set's own splits" if source.eval else _rule(settings.eval_fraction)
    return Plan(parts, source.class_names if use_classes else None, rule, [], ())


def _plan_of_examples(settings: IngestionSettings) -> Plan:
    dataset = settings.dataset
    label_key = settings.label_key if settings.classes == "auto" else ""

    def shards(source: str, flag: str, prefix: str, fraction: float, held_out: bool) -> list[Part]:
        if source.partition(":")[0] != "tfrecords":
            raise SourceError(f"{flag}={source} must be tfrecords:GLOB, as --dataset={dataset} is")
        paths = files_of(source, flag=flag, data_dir="", download=False)
        parts = [path.split("/") for path in paths]
        depth = len([*itertools.takewhile(lambda each: len(set(each)) == 1, zip(*(part[:-1] for part in parts), strict=False))])
        return [
            Examples(path, prefix + "/".join(part[depth:]), settings.image_key, label_key, fraction, held_out)
            for path, part in zip(paths, parts, strict=True)
        ]

    if settings.eval_dataset:
        parts = {
            "train": shards(dataset, "--dataset", "", 0.0, False),
            "eval": shards(settings.eval_dataset, "--eval_dataset", "eval_dataset/", 0.0, False),
        }
        return Plan(parts, None, "--eval_dataset is the split eval", [], ())
    parts = {
        split: shards(dataset, "--dataset", "", settings.eval_fraction, held_out)
        for split, held_out in (("train", False), ("eval", True))
    }
    return Plan(parts, None, _rule(settings.eval_fraction), [], ())


def _rule(fraction: float) -> str:
    return f"{fraction:g} of the images are the split eval: those with crc32(sha256(name)) < {fraction:g} * 2**32, name or row"


def _without_classes(images: ImageSet) -> ImageSet:
    return dataclasses.replace(images, classes=None, class_names=None)


def files_of(dataset: str, *, flag: str, data_dir: str, download: bool) -> list[str]:
    """All files that a data set is made of, to notice when one changes; none of what is bundled or made on the fly.

    Raises:
        SourceError: there are none.
    """
    kind, _, rest = dataset.partition(":")
    name = f"{flag}={dataset}"
    if kind == "tfrecords":
        paths = sorted(path for path in tf.io.gfile.glob(rest) if not tf.io.gfile.isdir(path))
        if not paths:
            raise SourceError(f"{name}: no file is called so")
        return paths
    if kind in ("folder", "idx", "npz"):
        path = existing_path(name, kind, rest)
        return [f"{path}/{each}" for each in walk(path, name=name)] if tf.io.gfile.isdir(path) else [path]
    if kind in ("digits", "synthetic"):
        return []
    root = str(open_tfds(name, dataset, data_dir=data_dir, download=download).builder.data_dir)
    return [f"{root}/{each}" for each in walk(root, name=name)]
