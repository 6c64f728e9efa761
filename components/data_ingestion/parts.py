"""What a shard is made of: each kind of part is read by a worker alone, image by image, in its order."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf
from google.protobuf import message

from sela_tf.compat.autotuning import untuned
from sela_tf.data.decoding import BadImageError, ImageInfo, check_image
from sela_tf.data.errors import SourceError
from sela_tf.data.record_writer import Record
from sela_tf.data.sources import load_source
from sela_tf.data.sources.tfds import open_tfds
from sela_tf.data.splits import is_held_out

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
                yield _checked(row_name(self.prefix, row), encoded, number if known else -1, names[number] if known else "")


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
            examples = tf.data.TFRecordDataset(self.path, compression_type="GZIP" if packed else "")
            for serialized in untuned(examples).as_numpy_iterator():
                name = row_name(self.name, row)
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


def row_name(prefix: str, row: int) -> str:
    """Sorts as rows do."""
    return f"{prefix}/{row:010d}"


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
