"""Sources of shards: the images that become one shard. A worker reads each source alone, image by image, in its order.

Sources hold plain values only, so that they can be written to JSON for the workers.
"""

from __future__ import annotations

import functools
import gzip
import zlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import tensorflow as tf
from google.protobuf import message

from components.data_ingestion.tfrecord_lengths import check_lengths
from sela_tf.compat.autotuning import untuned
from sela_tf.data.converting import to_png
from sela_tf.data.decoding import ImageInfo, check_image
from sela_tf.data.errors import SourceError
from sela_tf.data.headers import BadImageError
from sela_tf.data.left_out import ImageNote
from sela_tf.data.record_writer import Record
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.sources.tfds import open_tfds
from sela_tf.data.splits import is_held_out

_LABEL_KEY, _TEXT_KEY = "image/class/label", "image/class/text"


class ImageFiles(NamedTuple):
    """The source of a shard from image files that were checked before."""

    entries: list[tuple[str, str, int, str]]
    """Path, name, class label and class name of each image."""
    infos: list[ImageInfo]
    """Format and size of each image, after its conversion."""
    converted: list[bool]
    """True for each file that is converted to png."""

    def records(self) -> Iterator[Record | ImageNote]:
        """Yields the records of the shard in order, and images that are left out."""
        for (path, name, number, text), info, is_converted in zip(self.entries, self.infos, self.converted, strict=True):
            with tf.io.gfile.GFile(path, "rb") as file:
                data = file.read()
            described = ImageInfo(*info)
            size = (described.height, described.width, described.channels)
            yield Record(name, to_png(data) if is_converted else data, *size, number, text, described.largest)


class ArrayRows(NamedTuple):
    """The source of a shard from rows of arrays, which become png files."""

    dataset: str
    """The data set of the arrays."""
    memory_limit: int
    """Bytes that the arrays may take."""
    part: str
    """The split of the data set, "train" or "eval"."""
    entries: list[tuple[int, str, int, str]]
    """Row, name, class label and class name of each image."""

    def records(self) -> Iterator[Record | ImageNote]:
        """Yields the records of the shard in order, and images that are left out."""
        pixels = getattr(_arrays(self.dataset, self.memory_limit), self.part).images
        for row, name, number, text in self.entries:
            height, width, channels = pixels[row].shape
            yield Record(name, tf.io.encode_png(pixels[row]).numpy(), height, width, channels, number, text)


class TfdsRows(NamedTuple):
    """The source of a shard from rows of a TFDS data set."""

    dataset: str
    """The name by which TFDS knows the data set."""
    data_dir: str
    """The directory where TFDS keeps its data sets; "" for TFDS' own default."""
    split: str
    """The split of TFDS."""
    start: int
    """The first row."""
    stop: int
    """The row after the last one."""
    prefix: str
    """The beginning of the names: the split that the rows come from."""
    fraction: float
    """The share of the images that is held out."""
    held_out: bool
    """True for the images that are held out, False for the others."""
    use_classes: bool
    """False leaves class labels out."""

    def records(self) -> Iterator[Record | ImageNote]:
        """Yields the records of the shard in order, and images that are left out."""
        source = open_tfds(self.dataset, self.dataset, data_dir=self.data_dir)
        names = source.class_names or ()
        part = source.examples(f"{self.split}[{self.start}:{self.stop}]", encoded=True)
        for row, (encoded, number) in enumerate(part, start=self.start):
            if is_held_out(str(row), self.fraction) == self.held_out:
                known = self.use_classes and number >= 0
                yield _checked(row_name(self.prefix, row), encoded, number if known else -1, names[number] if known else "")


class TfExamples(NamedTuple):
    """The source of a shard from one TFRecord file of tf.train.Examples that another program wrote."""

    path: str
    """The path or URL of the file."""
    name: str
    """The beginning of the names of its images."""
    image_key: str
    """The feature that holds the image file."""
    label_key: str
    """The feature that holds the class label; "" leaves class labels out."""
    fraction: float
    """The share of the images that is held out."""
    held_out: bool
    """True for the images that are held out, False for the others."""

    def records(self) -> Iterator[Record | ImageNote]:
        """Yields the records of the shard in order, and images that are left out.

        Raises:
            SourceError: The file is cut or damaged, or lacks the feature.
        """
        with tf.io.gfile.GFile(self.path, "rb") as file:
            packed = file.read(2) == b"\x1f\x8b"
        row = 0
        try:
            check_lengths(self.path, packed=packed)
            examples = tf.data.TFRecordDataset(self.path, compression_type="GZIP" if packed else "")
            for serialized in untuned(examples).as_numpy_iterator():
                name = row_name(self.name, row)
                if is_held_out(name, self.fraction) == self.held_out:
                    yield self._one(name, row, tf.train.Example.FromString(serialized).features.feature)
                row += 1
        except message.DecodeError as error:
            raise SourceError(f"{self.path}: record {row} is no tf.train.Example") from error
        except (tf.errors.DataLossError, EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise SourceError(
                f"{self.path}: cut or damaged after its first {row} records, or packed otherwise than by gzip"
            ) from error

    def _one(self, name: str, row: int, features: Any) -> Record | ImageNote:
        image, kind = self._only(features, self.image_key, row, "image_key")
        if kind != "bytes_list":
            raise SourceError(
                f"{self.path}: record {row} has {kind} under {self.image_key!r}, no image file: name another `image_key`"
            )
        number, text = -1, ""
        words = features[_TEXT_KEY].bytes_list.value if _TEXT_KEY in features else []
        if words and self.label_key:
            text = words[0].decode(errors="replace")
        # A record may lack a class label unless the user has named the feature.
        if self.label_key and (self.label_key in features or self.label_key != _LABEL_KEY):
            label, kind = self._only(features, self.label_key, row, "label_key")
            if kind == "bytes_list":
                # A word: the classes are numbered when all of them are known.
                text = label.decode(errors="replace")
            elif not float(label).is_integer():
                raise SourceError(
                    f"{self.path}: record {row} has the class {label:g} under {self.label_key!r}, a {kind}: classes are whole numbers or words. "
                    "Name another `label_key`, or leave them out with `classes=none`"
                )
            else:
                number = max(-1, int(label))
        return _checked(name, image, number, text)

    def _only(self, features: Any, key: str, row: int, setting: str) -> tuple[Any, str]:
        """Returns the only value of a feature, and the kind of its list.

        Raises:
            SourceError: There is none, or there are several.
        """
        kind = features[key].WhichOneof("kind") if key in features else None
        values = getattr(features[key], kind).value if kind else []
        if len(values) != 1:
            raise SourceError(
                f"{self.path}: record {row} has {len(values)} values under {key!r}, not one (it has {', '.join(sorted(features))}): say "
                f"where it is with `{setting}`"
            )
        return values[0], str(kind)


ShardSource = ImageFiles | ArrayRows | TfdsRows | TfExamples
SHARD_SOURCES: dict[str, Callable[..., ShardSource]] = {
    kind.__name__: kind for kind in (ImageFiles, ArrayRows, TfdsRows, TfExamples)
}
"""Sources by the names of their classes, to make them again from JSON in a worker."""


def row_name(prefix: str, row: int) -> str:
    """Returns the name of an image without one: prefix and row. Names sort as rows do."""
    return f"{prefix}/{row:010d}"


def _checked(name: str, encoded: bytes, number: int, text: str) -> Record | ImageNote:
    """Decodes an image file, and returns its record or the reason why it is left out."""
    try:
        info = check_image(encoded)
    except BadImageError as error:
        return ImageNote(name, str(error))
    return Record(name, encoded, info.height, info.width, info.channels, number, text, info.largest)


@functools.lru_cache(maxsize=2)
def _arrays(dataset: str, memory_limit: int) -> Any:
    """Loads the arrays of a data set, once in each worker."""
    return load_source(dataset, SourceOptions(memory_limit=memory_limit))
