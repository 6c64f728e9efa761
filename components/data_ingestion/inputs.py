"""What is to be ingested, as shards that a worker can read by itself: each says which images, from where, in which order."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import tensorflow as tf
from google.protobuf import message

from sela_tf.data.decoding import BadImageError, ImageInfo, check_image
from sela_tf.data.folder import LookedAt, arrange, walk
from sela_tf.data.image_set import ImageSet, SourceError
from sela_tf.data.record_writer import Record, example_id
from sela_tf.data.sources import existing_path, load_source
from sela_tf.data.splits import hold_out, is_held_out, match_classes
from sela_tf.data.tfds_source import TfdsSource, open_tfds

Look = Callable[[str, Sequence[str]], Sequence[LookedAt]]
"""`look_at` for the files of a folder, by its root and their names; by whoever is at hand."""


_LABEL_KEY, _TEXT_KEY = "image/class/label", "image/class/text"


class Rejected(NamedTuple):
    """An image that is left out."""

    name: str
    reason: str


class Images(NamedTuple):
    """Of one shard: files that were looked at."""

    entries: list[tuple[str, str, int, str]]
    """Path, name, number and name of the class."""
    infos: list[ImageInfo]

    def records(self) -> Iterator[Record | Rejected]:
        """Each, as it is written."""
        for (path, name, number, text), info in zip(self.entries, self.infos, strict=True):
            with tf.io.gfile.GFile(path, "rb") as file:
                yield Record(name, file.read(), info[1], info[2], info[3], number, text)


class Rows(NamedTuple):
    """Of one shard: rows of arrays, which become png files."""

    dataset: str
    memory_limit: int
    part: str
    """ "train" or "eval" of the source."""
    entries: list[tuple[int, str, int, str]]
    """Row, name, number and name of the class."""

    def records(self) -> Iterator[Record | Rejected]:
        """Each, as it is written."""
        pixels = getattr(_arrays(self.dataset, self.memory_limit), self.part).images
        for row, name, number, text in self.entries:
            height, width, channels = pixels[row].shape
            yield Record(name, tf.io.encode_png(pixels[row]).numpy(), height, width, channels, number, text)


class Prepared(NamedTuple):
    """Of one shard: rows that TFDS has prepared."""

    dataset: str
    data_dir: str
    split: str
    start: int
    stop: int
    prefix: str
    """Of names: the split that they come from."""
    fraction: float
    """Held out."""
    held_out: bool
    """Whether those are wanted, or the others."""
    use_classes: bool

    def records(self) -> Iterator[Record | Rejected]:
        """Each, as it is written."""
        source = open_tfds(self.dataset, self.dataset, data_dir=self.data_dir)
        names = source.class_names or ()
        part = source.examples(f"{self.split}[{self.start}:{self.stop}]", encoded=True)
        for row, (encoded, number) in enumerate(part, start=self.start):
            if is_held_out(str(row), self.fraction) == self.held_out:
                known = self.use_classes and number >= 0
                yield _checked(_row_name(self.prefix, row), encoded, number if known else -1, names[number] if known else "")


class Examples(NamedTuple):
    """Of one shard: somebody else's tf.train.Examples, of one file."""

    path: str
    name: str
    image_key: str
    label_key: str
    """ "" if classes are not wanted."""
    fraction: float
    held_out: bool

    def records(self) -> Iterator[Record | Rejected]:
        """Each, as it is written.

        Raises:
            SourceError: the file is cut or damaged, or has no such feature.
        """
        with tf.io.gfile.GFile(self.path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        row = 0
        try:
            for serialized in tf.data.TFRecordDataset(self.path, compression_type="GZIP" if packed else "").as_numpy_iterator():
                name = _row_name(self.name, row)
                if is_held_out(name, self.fraction) == self.held_out:
                    yield self._one(name, row, tf.train.Example.FromString(serialized).features.feature)
                row += 1
        except message.DecodeError as error:
            raise SourceError(f"{self.path}: record {row} is no tf.train.Example") from error
        except tf.errors.DataLossError as error:
            raise SourceError(
                f"{self.path}: cut or damaged after its first {row} records, or packed otherwise than by gzip"
            ) from error

    def _one(self, name: str, row: int, features: Any) -> Record | Rejected:
        def only(key: str, kind: str, flag: str) -> Any:
            values = getattr(features[key], kind).value if key in features else []
            if len(values) != 1:
                raise SourceError(
                    f"{self.path}: record {row} has {len(values)} values of {kind} under {key!r}, not one (it has "
                    f"{', '.join(sorted(features))}): say where it is with --{flag}"
                )
            return values[0]

        number, text = -1, ""
        # that a record has no class may be, if nobody has said where it is
        if self.label_key and (self.label_key in features or self.label_key != _LABEL_KEY):
            number = max(-1, only(self.label_key, "int64_list", "label_key"))
            words = features[_TEXT_KEY].bytes_list.value if _TEXT_KEY in features else []
            text = words[0].decode(errors="replace") if words else ""
        return _checked(name, only(self.image_key, "bytes_list", "image_key"), number, text)


Part = Images | Rows | Prepared | Examples
PARTS: dict[str, Callable[..., Part]] = {kind.__name__: kind for kind in (Images, Rows, Prepared, Examples)}


class Plan(NamedTuple):
    """All that is to be written."""

    shards: dict[str, list[Part]]
    """By split: what each shard is made of."""
    class_names: tuple[str, ...] | None
    split_rule: str
    rejected: list[Rejected]
    report: tuple[str, ...]


class Options(NamedTuple):
    """Of `plan`, as the settings have them."""

    eval_dataset: str
    eval_fraction: float
    use_classes: bool
    skip_bad_images: bool
    images_per_shard: int
    image_key: str
    label_key: str
    data_dir: str
    memory_limit: int


def plan(dataset: str, options: Options, look: Look) -> Plan:
    """Which images become which shards: the same for the same input.

    Raises:
        SourceError: the data set is unknown, empty or damaged.
    """
    kind = dataset.partition(":")[0]
    if kind == "tfrecords":
        return _plan_of_examples(dataset, options)
    if kind in ("folder", "idx", "npz", "digits", "synthetic"):
        return _plan_of_sets(dataset, options, look)
    return _plan_of_tfds(dataset, options)


def _plan_of_sets(dataset: str, options: Options, look: Look) -> Plan:
    """Of folders, whose files are looked at first, and of arrays."""
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
            found = arrange(root, files, name=name, skip_bad_images=options.skip_bad_images)
        else:
            found = load_source(source, flag=flag, memory_limit=options.memory_limit)
        report.extend(found.report)
        return found.train, found.eval

    train, held_out = load(dataset, "--dataset")
    parts = {"train": (dataset, "train", ""), "eval": (dataset, "eval", "")}
    if options.eval_dataset:
        if options.eval_dataset.partition(":")[0] not in ("folder", "idx", "npz", "digits", "synthetic"):
            raise SourceError(f"--eval_dataset={options.eval_dataset} must be a folder or arrays, as --dataset={dataset} is")
        other, other_eval = load(options.eval_dataset, "--eval_dataset")
        held_out = other if other_eval is None else other_eval
        parts["eval"] = (options.eval_dataset, "train" if other_eval is None else "eval", "eval_dataset/")
    rule = "the data set's own splits" if not options.eval_dataset else "--eval_dataset is the split eval"
    if held_out is None:
        train, held_out = hold_out(train, options.eval_fraction)
        parts["eval"] = parts["train"]
        rule = _rule(options.eval_fraction)
    if not options.use_classes:
        train, held_out = _without_classes(train), _without_classes(held_out)
    train, held_out = match_classes(train, held_out)

    def shards(split: str, images: ImageSet) -> list[Part]:
        source, part, prefix = parts[split]
        numbers = [-1] * len(images) if images.classes is None else images.classes.tolist()
        texts = [images.class_names[number] if images.class_names and number >= 0 else "" for number in numbers]
        if images.names is not None:
            names = [prefix + name for name in images.names]
        else:
            names = [_row_name(prefix.rstrip("/") or part, row) for row in images.rows.tolist()]
        count = max(1, -(-len(images) // options.images_per_shard))
        places: list[list[int]] = [[] for _ in range(count)]
        for i, name in enumerate(names):
            places[zlib.crc32(example_id(name).encode()) % count].append(i)
        made: list[Part] = []
        for chosen in places:
            if images.paths is not None:
                paths = [images.paths[i] for i in chosen]
                entries = [(path, names[i], numbers[i], texts[i]) for path, i in zip(paths, chosen, strict=True)]
                made.append(Images(entries, [info for path in paths if (info := looked[path].info) is not None]))
            else:
                rows = images.rows[chosen].tolist()
                made.append(
                    Rows(
                        source, options.memory_limit, part,
                        [(row, names[i], numbers[i], texts[i]) for row, i in zip(rows, chosen, strict=True)],
                    )
                )  # fmt: skip
        return made

    sets = {"train": train, "eval": held_out}
    return Plan({split: shards(split, images) for split, images in sets.items()}, train.class_names, rule, rejected, tuple(report))


def _plan_of_tfds(dataset: str, options: Options) -> Plan:
    source = open_tfds(f"--dataset={dataset}", dataset, data_dir=options.data_dir)
    if options.eval_dataset:
        raise SourceError(
            f"--eval_dataset={options.eval_dataset} cannot be beside --dataset={dataset}: ingest a folder, or leave it out"
        )

    def shards(split: str, prefix: str, held_out: bool, source: TfdsSource = source) -> list[Part]:
        total = source.num_examples(split)
        count = max(1, -(-total // options.images_per_shard))
        bounds = [i * total // count for i in range(count + 1)]
        fraction = 0.0 if source.eval else options.eval_fraction
        return [
            Prepared(dataset, options.data_dir, split, start, stop, prefix, fraction, held_out, options.use_classes)
            for start, stop in itertools.pairwise(bounds)
        ]

    parts = {"train": shards(source.train, "train", False)}
    parts["eval"] = shards(source.eval, "eval", False) if source.eval else shards(source.train, "train", True)
    rule = "the data set's own splits" if source.eval else _rule(options.eval_fraction)
    return Plan(parts, source.class_names if options.use_classes else None, rule, [], ())


def _plan_of_examples(dataset: str, options: Options) -> Plan:
    label_key = options.label_key if options.use_classes else ""

    def shards(source: str, flag: str, prefix: str, fraction: float, held_out: bool) -> list[Part]:
        if source.partition(":")[0] != "tfrecords":
            raise SourceError(f"{flag}={source} must be tfrecords:GLOB, as --dataset={dataset} is")
        paths = files_of(source, flag=flag, data_dir="", download=False)
        parts = [path.split("/") for path in paths]
        depth = len([*itertools.takewhile(lambda each: len(set(each)) == 1, zip(*(part[:-1] for part in parts), strict=False))])
        return [
            Examples(path, prefix + "/".join(part[depth:]), options.image_key, label_key, fraction, held_out)
            for path, part in zip(paths, parts, strict=True)
        ]

    if options.eval_dataset:
        parts = {
            "train": shards(dataset, "--dataset", "", 0.0, False),
            "eval": shards(options.eval_dataset, "--eval_dataset", "eval_dataset/", 0.0, False),
        }
        return Plan(parts, None, "--eval_dataset is the split eval", [], ())
    parts = {
        split: shards(dataset, "--dataset", "", options.eval_fraction, held_out)
        for split, held_out in (("train", False), ("eval", True))
    }
    return Plan(parts, None, _rule(options.eval_fraction), [], ())


def _rule(fraction: float) -> str:
    return f"{fraction:g} of the images are the split eval: those with crc32(sha256(name)) < {fraction:g} * 2**32, name or row"


def _row_name(prefix: str, row: int) -> str:
    """Sorts as rows do."""
    return f"{prefix}/{row:010d}"


def _without_classes(images: ImageSet) -> ImageSet:
    return dataclasses.replace(images, classes=None, class_names=None)


def _checked(name: str, encoded: bytes, number: int, text: str) -> Record | Rejected:
    try:
        info = check_image(encoded)
    except BadImageError as error:
        return Rejected(name, str(error))
    return Record(name, encoded, info.height, info.width, info.channels, number, text)


@functools.lru_cache(maxsize=2)
def _arrays(dataset: str, memory_limit: int) -> Any:
    """Loaded once by each worker."""
    return load_source(dataset, memory_limit=memory_limit)


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
