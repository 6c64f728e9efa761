"""The source of idx files, the format of MNIST."""

from __future__ import annotations

import gzip
import math
import os
import pathlib
import struct
import zlib
from typing import IO, cast

import numpy as np

from sela_tf.data.classes import class_labels
from sela_tf.data.errors import NAMES_SHOWN, SourceError
from sela_tf.data.image_set import ImageSet, SourceName, Splits
from sela_tf.data.sources.arrays import array_set, check_memory
from sela_tf.files.archives import MOST_DEFLATED

_MOST_SIDES = 3
"""The most sides of an array in a file: those of images."""
_AT_ONCE = 2**20
"""Bytes that are unpacked at once."""


def load_idx(directory: pathlib.Path, *, source: SourceName, use_classes: bool = True, memory_limit: int) -> Splits:
    """Loads the idx files of a directory, as MNIST has them: train-images-idx3-ubyte[.gz], and its labels and test images if they exist.

    Args:
        directory: The directory.
        source: The name of the source.
        use_classes: False leaves class labels out.
        memory_limit: Bytes that a file may unpack to.

    Raises:
        SourceError: The training images are missing, or a file is cut, damaged or too large.
    """

    def part(stem: str) -> ImageSet | None:
        def read(suffix: str) -> np.ndarray | None:
            for file in (f"{stem}-{suffix}-ubyte.gz", f"{stem}-{suffix}-ubyte", f"{stem}-{suffix.replace('-', '.')}-ubyte"):
                if (directory / file).is_file():
                    return _read_file(str(source), directory / file, memory_limit)
            return None

        images, classes = read("images-idx3"), read("labels-idx1") if use_classes else None
        if images is None:
            return None
        key = f"{stem}-labels-idx1"
        labels = None if classes is None else class_labels(classes, len(images), key=key, source=str(source))
        return array_set(source, images, labels)

    train = part("train")
    if train is None:
        found = ", ".join(sorted(os.listdir(directory))[:NAMES_SHOWN]) or "nothing"
        raise SourceError(f"{source}: no train-images-idx3-ubyte[.gz] in {str(directory)!r} (it holds {found})")
    return Splits(train, part("t10k"))


def _read_file(name: str, path: pathlib.Path, memory_limit: int) -> np.ndarray:
    """Returns the array of an idx file, uint8. Only what its header claims is unpacked, once that can be."""
    try:
        packed = path.suffix == ".gz"
        with path.open("rb") as file, gzip.open(file) if packed else file as unpacked:
            shape = _shape(cast(IO[bytes], unpacked))
            check_memory(name, math.prod(shape), memory_limit)
            if math.prod(shape) > os.fstat(file.fileno()).st_size * (MOST_DEFLATED if packed else 1):
                raise ValueError(f"it claims {list(shape)} bytes")
            values = np.empty(shape, np.uint8)
            left = values.reshape(-1).data
            while count := unpacked.readinto(left[:_AT_ONCE]):
                left = left[count:]
            if len(left) or unpacked.read(1):
                raise ValueError(f"it does not hold the {list(shape)} bytes that it claims")
            return values
    except SourceError as error:
        raise error
    except (OSError, EOFError, zlib.error, struct.error, ValueError) as error:
        raise SourceError(f"{name}: {str(path)!r} is cut or damaged ({error})") from error


def _shape(file: IO[bytes]) -> tuple[int, ...]:
    """Returns the shape of the array in an idx file of unsigned bytes.

    Raises:
        ValueError: The file is not such a file.
        struct.error: It is cut.
    """
    zero, kind, sides = struct.unpack(">HBB", file.read(4))
    if (zero, kind) != (0, 8) or not 0 < sides <= _MOST_SIDES:
        raise ValueError("not an idx file of unsigned bytes")
    return struct.unpack(f">{sides}I", file.read(4 * sides))
