"""Known clusters of a few images, from a CSV file of two columns."""

from __future__ import annotations

import csv
import os
import pathlib

import numpy as np

from sela_tf.data.image_set import ImageSet
from sela_tf.data.sources import SourceError


def read_known_labels(path: str | os.PathLike[str], images: ImageSet, num_clusters: int) -> np.ndarray:
    """int64 [N]: the cluster of every image named in the file, -1 for the others.

    The first line is `name,cluster`, for images that have names (a folder's: the path below it), or `index,cluster`, counted from 0.

    Raises:
        SourceError: the file cannot be read so; it names the line.
    """
    flag = f"--known_labels={path}"
    try:
        with pathlib.Path(path).expanduser().open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.reader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{flag} cannot be read: {error}") from error
    header = [cell.strip() for cell in lines[0]] if lines else []
    if header not in (["name", "cluster"], ["index", "cluster"]):
        raise SourceError(f"the first line of {flag} must be name,cluster or index,cluster. Received: {','.join(header)!r}")
    if header[0] == "name":
        if images.names is None:
            raise SourceError(f"the images have no names: begin {flag} with index,cluster")
        places = {name: index for index, name in enumerate(images.names)}
    else:
        places = {str(index): index for index in range(len(images))}
    known = np.full(len(images), -1, np.int64)
    for number, line in enumerate(lines[1:], start=2):
        if not line:
            continue
        where = f"line {number} of {flag}"
        if len(line) != 2:
            raise SourceError(f"{where} must have two columns. Received: {','.join(line)!r}")
        key, text = line[0].strip(), line[1].strip()
        index = places.get(key, -1)
        if index < 0:
            hint = "" if header[0] == "name" else f" of the {len(images)} training images"
            raise SourceError(f"{where}: there is no training image {key!r}{hint}")
        if not text.isdecimal() or int(text) >= num_clusters:
            raise SourceError(f"{where}: the cluster must be from 0 to {num_clusters - 1}. Received: {text!r}")
        if known[index] not in (-1, int(text)):
            raise SourceError(f"{where}: {key!r} was said to be of cluster {known[index]} before. Received: {text}")
        known[index] = int(text)
    return known
