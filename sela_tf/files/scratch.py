"""Arrays that lie on a disk while they are used, because memory is too small for them."""

from __future__ import annotations

import math
import os
import pathlib
import tempfile
from collections.abc import Sequence

import numpy as np

from sela_tf.files.storage import storage_errors


def scratch_array(directory: pathlib.Path, shape: Sequence[int]) -> np.ndarray:
    """Returns an array of zeros, float32, that lies in a file without a name in `directory`: it is gone with the array, also if the process
    is killed.

    Its room is reserved at once. A write into memory that stands for a file has no other way to fail on a full disk than SIGBUS.

    Raises:
        StorageError: there is no room for it.
    """
    with tempfile.TemporaryFile(dir=directory) as file:
        with storage_errors(directory):
            os.posix_fallocate(file.fileno(), 0, 4 * math.prod(shape))
        return np.memmap(file, np.float32, "r+", shape=tuple(shape))
