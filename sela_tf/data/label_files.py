"""Labels out of files: the known clusters of a few images (CSV), and those that another run gave all images (npz)."""

from __future__ import annotations

import csv
import os
import pathlib
import zipfile

import numpy as np

from sela_tf.data.image_set import ImageSet, SourceError


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


def read_run_labels(path: str | os.PathLike[str], images: ImageSet, num_heads: int, num_clusters: int) -> np.ndarray:
    """int64 [T, N]: the labels that a run's labels.npz has for `images`, found by their names, or in order where they have none.

    Raises:
        SourceError: the file cannot be read so, is of other heads or clusters, or lacks images.
    """
    flag = f"--labels_from={path}"
    if os.path.isdir(path):
        raise SourceError(f"{flag} is a directory: give its labels.npz")
    try:
        if not zipfile.is_zipfile(path):
            raise ValueError("not an archive")
        with np.load(path, allow_pickle=False) as archive:
            labels, fingerprint = np.asarray(archive["labels"]), str(archive["data_fingerprint"])
            names = archive["names"].tolist() if "names" in archive.files else None
            found_clusters = archive["potentials"].shape[-1]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise SourceError(f"{flag} is not the labels.npz of a run, or not a whole one ({error})") from error
    if (len(labels), found_clusters) != (num_heads, num_clusters):
        raise SourceError(
            f"{flag} has {len(labels)} heads of {found_clusters} clusters, and --num_heads={num_heads} --num_clusters={num_clusters} were "
            f"asked for: give --num_heads={len(labels)} --num_clusters={found_clusters}"
        )
    if names is None or images.names is None:
        if fingerprint != images.fingerprint():
            raise SourceError(
                f"{flag} labels {labels.shape[1]} other images than the {len(images)} training images of {images.name}, which have no "
                "names to be matched by: use the images, and the split, of that run"
            )
        return labels.astype(np.int64)
    places = {name: index for index, name in enumerate(names)}
    missing = [name for name in images.names if name not in places]
    if missing:
        raise SourceError(
            f"{flag} lacks {len(missing)} of the {len(images)} training images of {images.name}, such as {missing[0]!r}: use the images, and "
            "the split, of that run"
        )
    return labels[:, [places[name] for name in images.names]].astype(np.int64)
