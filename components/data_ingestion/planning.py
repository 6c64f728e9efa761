"""The plan of an ingestion: the images of each shard, decided before anything is written."""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Callable, Sequence
from typing import NamedTuple

import tensorflow as tf

from components.data_ingestion.shard_sources import ArrayRows, ImageFiles, ShardSource, TfdsRows, TfExamples, row_name
from components.settings import IngestionSettings
from sela_tf.data.classes import with_classes_told
from sela_tf.data.converting import missing_packages
from sela_tf.data.errors import SourceError
from sela_tf.data.folder_contents import walk
from sela_tf.data.image_set import ImageSet, SourceName
from sela_tf.data.left_out import ImageNote, in_words
from sela_tf.data.listing import FileInfo
from sela_tf.data.record_writer import example_id
from sela_tf.data.sources import SourceOptions, existing_path, load_source, without_classes
from sela_tf.data.sources.folder import contents_of_folder, splits_of_files
from sela_tf.data.sources.tfds import TfdsSource, open_tfds
from sela_tf.data.splits import hold_out, match_classes
from sela_tf.data.stores import Files

_SETS = ("folder", "idx", "npz", "digits", "synthetic")
"""Kinds of data sets that are loaded as image sets, as in training. Others are read once, in their order."""
_OWN_SPLITS, _EVAL_DATASET = "the data set's own splits", "--eval_dataset is the split eval"
"""Rules of splits in the manifest. They are part of its digest, so their words do not change."""
InspectFiles = Callable[[str, Sequence[str]], Sequence[tuple[FileInfo, str]]]
"""A function of the root of a folder and the names of its files that returns the result for each, and the reason for its conversion."""


class Plan(NamedTuple):
    """The plan of an ingestion."""

    shards: dict[str, list[ShardSource]]
    """Sources of the shards, by split ("train", "eval")."""
    class_names: tuple[str, ...] | None
    """Names of the classes, by number; None if they are not known before the images are read."""
    split_rule: str
    """The rule by which images are held out, for the manifest."""
    rejected: list[ImageNote]
    """Images that are left out."""
    converted: list[ImageNote]
    """Images that are converted to png, with the reason."""
    report: tuple[str, ...]
    """Lines for the user."""


def plan(settings: IngestionSettings, inspect: InspectFiles) -> Plan:
    """Plans an ingestion. The same input gives the same plan.

    Args:
        settings: The settings of the ingestion.
        inspect: Reads and decodes the files of a folder.

    Raises:
        SourceError: The data set is unknown, empty or damaged.
    """
    kind = settings.dataset.partition(":")[0]
    if kind == "tfrecords":
        return _plan_of_examples(settings)
    if kind in _SETS:
        return _plan_of_sets(settings, inspect)
    return _plan_of_tfds(settings)


class _Source(NamedTuple):
    """The place that a split comes from."""

    dataset: str
    """The data set."""
    part: str
    """The split of the data set, "train" or "eval"."""
    prefix: str
    """The beginning of the names of its images."""


class _SetLoader:
    """The loader of folders and arrays, which remembers the results for files and the images that are left out."""

    def __init__(self, settings: IngestionSettings, inspect: InspectFiles):
        self.memory_limit = int(settings.memory_limit * 2**30)
        self.files: dict[str, FileInfo] = {}
        self.converted: dict[str, ImageNote] = {}
        self.rejected: list[ImageNote] = []
        self.report: list[str] = []
        self._settings, self._inspect = settings, inspect

    def load(self, dataset: str, setting: str) -> tuple[ImageSet, ImageSet | None]:
        """Loads the splits of a data set that `setting` names; of a folder, all files are inspected first."""
        kind, _, rest = dataset.partition(":")
        settings = self._settings
        if kind == "folder":
            source = SourceName(dataset, setting)
            root = existing_path(str(source), kind, rest)
            contents = contents_of_folder(root, source=source, class_level=settings.class_level)
            if lacking := missing_packages(contents.names):
                print(f"{source}: {lacking}", flush=True)
            inspected = self._inspect(root, contents.names)
            files = [file for file, _ in inspected]
            self.files.update((file.path, file) for file in files)
            converted = {file.path: ImageNote(file.name, reason) for file, reason in inspected if reason}
            self.converted.update(converted)
            if converted:
                self.report.append(f"converted to png, {len(converted)} images: {in_words([*converted.values()])}")
            found = splits_of_files(
                root, files, contents, source=source, max_rejected=settings.max_rejected, class_level=settings.class_level
            )
            found = with_classes_told(found if settings.classes == "auto" else without_classes(found))
        else:
            options = SourceOptions(memory_limit=self.memory_limit, use_classes=settings.classes == "auto")
            found = load_source(dataset, options, setting=setting)
        self.rejected.extend(found.rejected)
        self.report.extend(found.report)
        return found.train, found.eval


def _plan_of_sets(settings: IngestionSettings, inspect: InspectFiles) -> Plan:
    """Plans the shards of folders and arrays, whose splits and classes are those of training."""
    dataset = settings.dataset
    loader = _SetLoader(settings, inspect)
    train, held_out = loader.load(dataset, "dataset")
    sources = {"train": _Source(dataset, "train", ""), "eval": _Source(dataset, "eval", "")}
    rule = _OWN_SPLITS
    if settings.eval_dataset:
        if settings.eval_dataset.partition(":")[0] not in _SETS:
            raise SourceError(f"`eval_dataset={settings.eval_dataset}` must be a folder or arrays, as `dataset={dataset}` is")
        other, other_eval = loader.load(settings.eval_dataset, "eval_dataset")
        held_out = other if other_eval is None else other_eval
        sources["eval"] = _Source(settings.eval_dataset, "train" if other_eval is None else "eval", "eval_dataset/")
        rule = _EVAL_DATASET
    if held_out is None:
        train, held_out = hold_out(train, settings.eval_fraction)
        sources["eval"] = sources["train"]
        rule = _rule(settings.eval_fraction)
    train, held_out = match_classes(train, held_out)
    shards = {
        split: _shards_of_set(images, sources[split], loader, settings.images_per_shard)
        for split, images in (("train", train), ("eval", held_out))
    }
    return Plan(shards, train.class_names, rule, loader.rejected, [*loader.converted.values()], tuple(loader.report))


def _shards_of_set(images: ImageSet, source: _Source, loader: _SetLoader, images_per_shard: int) -> list[ShardSource]:
    """Distributes the images of a split over shards, by a hash of their ids."""
    numbers = [-1] * len(images) if images.classes is None else images.classes.tolist()
    texts = [images.class_names[number] if images.class_names and number >= 0 else "" for number in numbers]
    if images.names is not None:
        names = [source.prefix + name for name in images.names]
    else:
        names = [row_name(source.prefix.rstrip("/") or source.part, row) for row in images.rows.tolist()]
    count = max(1, -(-len(images) // images_per_shard))
    places: list[list[int]] = [[] for _ in range(count)]
    for i, name in enumerate(names):
        places[zlib.crc32(example_id(name).encode()) % count].append(i)
    shards: list[ShardSource] = []
    for chosen in places:
        described = [(names[i], numbers[i], texts[i]) for i in chosen]
        if isinstance(images.store, Files):
            paths = [images.store.paths[i] for i in chosen]
            entries = [(path, *each) for path, each in zip(paths, described, strict=True)]
            infos = [info for path in paths if (info := loader.files[path].info) is not None]
            shards.append(ImageFiles(entries, infos, [path in loader.converted for path in paths]))
        else:
            rows = [(row, *each) for row, each in zip(images.rows[chosen].tolist(), described, strict=True)]
            shards.append(ArrayRows(source.dataset, loader.memory_limit, source.part, rows))
    return shards


def _plan_of_tfds(settings: IngestionSettings) -> Plan:
    """Plans the shards of a TFDS data set, by ranges of its rows."""
    dataset = settings.dataset
    source = open_tfds(f"`dataset={dataset}`", dataset, data_dir=settings.data_dir)
    use_classes = settings.classes == "auto"
    if settings.eval_dataset:
        raise SourceError(
            f"`eval_dataset={settings.eval_dataset}` cannot be beside `dataset={dataset}`: ingest a folder, or leave it out"
        )

    def shards(split: str, prefix: str, held_out: bool, source: TfdsSource = source) -> list[ShardSource]:
        total = source.num_examples(split)
        count = max(1, -(-total // settings.images_per_shard))
        bounds = [i * total // count for i in range(count + 1)]
        fraction = 0.0 if source.eval else settings.eval_fraction
        return [
            TfdsRows(dataset, settings.data_dir, split, start, stop, prefix, fraction, held_out, use_classes)
            for start, stop in itertools.pairwise(bounds)
        ]

    parts = {"train": shards(source.train, "train", False)}
    parts["eval"] = shards(source.eval, "eval", False) if source.eval else shards(source.train, "train", True)
    rule = _OWN_SPLITS if source.eval else _rule(settings.eval_fraction)
    return Plan(parts, source.class_names if use_classes else None, rule, [], [], ())


def _plan_of_examples(settings: IngestionSettings) -> Plan:
    """Plans the shards of TFRecord files of another program: a shard for each file."""
    dataset = settings.dataset
    label_key = settings.label_key if settings.classes == "auto" else ""

    def shards(source: str, setting: str, prefix: str, fraction: float, held_out: bool) -> list[ShardSource]:
        if source.partition(":")[0] != "tfrecords":
            raise SourceError(f"`{setting}={source}` must be tfrecords:GLOB, as `dataset={dataset}` is")
        paths = files_of(source, setting=setting, data_dir="", download=False)
        parts = [path.split("/") for path in paths]
        depth = len([*itertools.takewhile(lambda each: len(set(each)) == 1, zip(*(part[:-1] for part in parts), strict=False))])
        return [
            TfExamples(path, prefix + "/".join(part[depth:]), settings.image_key, label_key, fraction, held_out)
            for path, part in zip(paths, parts, strict=True)
        ]

    if settings.eval_dataset:
        parts = {
            "train": shards(dataset, "dataset", "", 0.0, False),
            "eval": shards(settings.eval_dataset, "eval_dataset", "eval_dataset/", 0.0, False),
        }
        return Plan(parts, None, _EVAL_DATASET, [], [], ())
    parts = {
        split: shards(dataset, "dataset", "", settings.eval_fraction, held_out)
        for split, held_out in (("train", False), ("eval", True))
    }
    return Plan(parts, None, _rule(settings.eval_fraction), [], [], ())


def _rule(fraction: float) -> str:
    """Returns the rule of `splits.is_held_out` in words, for the manifest."""
    return f"{fraction:g} of the images are the split eval: those with crc32(sha256(name)) < {fraction:g} * 2**32, name or row"


def files_of(dataset: str, *, setting: str, data_dir: str, download: bool) -> list[str]:
    """Returns the paths of all files of a data set, by which a change of it is noticed; none for digits and synthetic.

    Args:
        dataset: The data set.
        setting: The setting that names it, for messages.
        data_dir: The directory where TFDS keeps its data sets; "" for TFDS' own default.
        download: Lets TFDS download and prepare a data set that is missing.

    Raises:
        SourceError: The data set does not exist.
    """
    kind, _, rest = dataset.partition(":")
    name = f"`{setting}={dataset}`"
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
