"""The lengths of the records in a TFRecord file of another program, checked before TensorFlow reads them."""

from __future__ import annotations

import gzip

import tensorflow as tf

from sela_tf.data.errors import SourceError
from sela_tf.data.records import FRAME, LENGTH, MOST_BYTES


def check_lengths(path: str, *, packed: bool) -> None:
    """Checks that no record of a TFRecord file claims more bytes than an image file can have: TensorFlow would end the process.

    Args:
        path: The file or URL.
        packed: True for a gzip file.

    Raises:
        SourceError: A record claims more. One that is cut is left to TensorFlow.
        OSError, EOFError, zlib.error: A gzip file is damaged.
    """
    number = 0
    with tf.io.gfile.GFile(path, "rb") as file, gzip.open(file) if packed else file as opened:
        while len(head := opened.read(LENGTH)) == LENGTH:
            length = int.from_bytes(head, "little")
            if length > MOST_BYTES:
                raise SourceError(
                    f"{path}: record {number} claims {length} bytes, and no image has more than {MOST_BYTES}: it is damaged, no TFRecord file, or "
                    "packed otherwise than by gzip"
                )
            try:
                opened.seek(opened.tell() + length + FRAME - LENGTH)
            except tf.errors.OutOfRangeError:
                return
            number += 1
