"""Files of labels that training reads: known clusters of some images (CSV), and the labels of all images from another run (npz)."""

from __future__ import annotations

import csv
import os
import pathlib
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.files.archives import read_npz


class KnownLabels(NamedTuple):
    """Labels that are known and kept in training."""

    labels: np.ndarray
    """Clusters of the training images, int64 `[N]`; -1 if not known."""
    num_left_out: int
    """The number of labels in the file for images that are not trained on."""


def read_known_labels(
    path: str | os.PathLike[str], images: ImageSet, num_clusters: int, *, others: Sequence[ImageSet] = ()
) -> KnownLabels:
    """Reads known labels from a CSV file.

    The first line is `name,cluster` for images with names (for a folder the path below it, in either Unicode form), or `index,cluster`,
    where the index is the row in the source, as `python -m sela_tf.label` writes it. A cluster that is empty or -1 is not known. Numbers
    may be written as 3.0.

    Args:
        path: The file.
        images: The N training images.
        num_clusters: The number of clusters K.
        others: Images of the source that are not trained on. Their labels are counted and left out.

    Raises:
        SourceError: The file is malformed, or labels an unknown image. The message names the line.
    """
    setting = f"`known_labels={path}`"
    kind, lines = _read_lines(path, setting)
    keys = [line.key for line in lines]
    if kind == "name":
        if images.names is None:
            raise SourceError(f"the images have no names: begin {setting} with index,cluster")
        other_names = [name for each in others for name in each.names or ()]
        known_names = {*images.names, *other_names}
        # Blanks around a name belong to it only if an image is called so.
        keys = [key if key in known_names else key.strip() for key in keys]
        places, other_places = match_names(keys, images.names), match_names(keys, other_names)
    else:
        places = _match_rows(keys, images.rows)
        # Sets without `source_rows` come from another source or split, and their rows do not count here.
        rows = [each.source_rows for each in others if each.source_rows is not None]
        other_places = _match_rows(keys, np.concatenate([np.arange(0), *rows]))
    known = np.full(len(images), -1, np.int64)
    num_left_out = 0
    for line, place, other_place in zip(lines, places, other_places, strict=True):
        where = f"line {line.number} of {setting}"
        if place < 0 and other_place < 0:
            raise SourceError(
                f"{where}: none of the {len(images)} training images, nor of those left out, has the {kind} {line.key!r}"
            )
        cluster = _whole_number(line.cluster) if line.cluster else -1
        if cluster is None or not -1 <= cluster < num_clusters:
            raise SourceError(
                f"{where}: the cluster must be from 0 to {num_clusters - 1}, or -1 or empty where it is not known. "
                f"Received: {line.cluster!r}"
            )
        if cluster < 0:
            continue
        if place < 0:
            num_left_out += 1
            continue
        if known[place] not in (-1, cluster):
            raise SourceError(f"{where}: {line.key!r} was said to be of cluster {known[place]} before. Received: {line.cluster}")
        known[place] = cluster
    return KnownLabels(known, num_left_out)


class _Line(NamedTuple):
    """One line of a file of known labels."""

    number: int
    """The number of the line, from 1."""
    key: str
    """The name of an image, or its row in the source."""
    cluster: str
    """The cluster as it is written."""


def _read_lines(path: str | os.PathLike[str], setting: str) -> tuple[str, list[_Line]]:
    """Returns the kind of the keys, "name" or "row", and all lines but the first; `setting` names the file in messages."""
    try:
        with pathlib.Path(path).expanduser().open(newline="", encoding="utf-8-sig") as file:
            # A cell in quotes may hold line breaks, so that its line begins earlier than the reader stands.
            reader = csv.reader(file)
            lines = [(reader.line_num - sum(cell.count("\n") for cell in line), line) for line in reader]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SourceError(f"{setting} cannot be read: {error}") from error
    header = [cell.strip() for cell in lines[0][1]] if lines else []
    if header not in (["name", "cluster"], ["index", "cluster"]):
        raise SourceError(f"the first line of {setting} must be name,cluster or index,cluster. Received: {','.join(header)!r}")
    found = []
    for number, line in lines[1:]:
        if not any(cell.strip() for cell in line):
            continue
        if len(line) != 2:
            raise SourceError(f"line {number} of {setting} must have two columns. Received: {','.join(line)!r}")
        found.append(_Line(number, line[0], line[1].strip()))
    return "name" if header[0] == "name" else "row", found


def _match_rows(keys: Sequence[str], rows: np.ndarray) -> list[int]:
    """Returns the place of each key among `rows`; -1 if it is not there."""
    places: dict[int | None, int] = {row: place for place, row in enumerate(rows.tolist())}
    return [places.get(_whole_number(key), -1) for key in keys]


def match_names(wanted: Sequence[str], names: Sequence[str]) -> list[int]:
    """Returns the place of each wanted name among `names`; -1 if it is not there.

    A name that is not there as it is written is looked for in the other Unicode form: macOS writes é as two characters, other systems as
    one.
    """
    exact = {name: place for place, name in enumerate(names)}
    if all(name in exact for name in wanted):
        return [exact[name] for name in wanted]
    alike: dict[str, int] = {}
    for place, name in enumerate(names):
        key = unicodedata.normalize("NFC", name)
        # Names that differ in their Unicode form only match by that form, not by this table.
        alike[key] = -1 if key in alike else place
    return [exact.get(name, alike.get(unicodedata.normalize("NFC", name), -1)) for name in wanted]


def _whole_number(text: str) -> int | None:
    """Returns the whole number written as 3, 3.0 or 3.000e+00, as table software does; None for any other text."""
    try:
        value = float(text)
    except ValueError:
        return None
    return int(value) if value.is_integer() and abs(value) < 2**53 and "_" not in text else None


def read_run_shape(path: str | os.PathLike[str]) -> tuple[int, int]:
    """Returns the numbers of heads T and of clusters K of the labels.npz of another run.

    Raises:
        SourceError: The file is not such a file.
    """
    archive = _read_run(path)
    return len(archive["labels"]), archive["potentials"].shape[-1]


def _read_run(path: str | os.PathLike[str]) -> dict[str, np.ndarray]:
    """Reads the labels.npz of another run."""
    setting = f"`labels_from={path}`"
    if os.path.isdir(path):
        raise SourceError(f"{setting} is a directory: give its labels.npz")
    try:
        archive = read_npz(path)
        missing = {"labels", "potentials", "data_fingerprint"} - set(archive)
        if missing:
            raise ValueError(f"no array {sorted(missing)[0]!r}")
    except (OSError, ValueError) as error:
        raise SourceError(f"{setting} is not the labels.npz of a run, or not a whole one ({error})") from error
    return archive


def read_run_labels(path: str | os.PathLike[str], images: ImageSet, num_heads: int, num_clusters: int) -> np.ndarray:
    """Reads the labels of images from the labels.npz of another run.

    Images are matched by name, in either Unicode form; without names they must be the very images of that run, in order.

    Args:
        path: The file labels.npz.
        images: The N training images.
        num_heads: The number of heads T.
        num_clusters: The number of clusters K of each head.

    Returns:
        Labels, int64 `[T, N]`.

    Raises:
        SourceError: The file is not such a file, has other numbers of heads or clusters, or lacks images.
    """
    setting = f"`labels_from={path}`"
    archive = _read_run(path)
    labels, fingerprint = archive["labels"], str(archive["data_fingerprint"])
    names = archive["names"].tolist() if "names" in archive else None
    found_clusters = archive["potentials"].shape[-1]
    if (len(labels), found_clusters) != (num_heads, num_clusters):
        raise SourceError(
            f"{setting} has {len(labels)} heads of {found_clusters} clusters, and `num_heads={num_heads}` `num_clusters={num_clusters}` were "
            f"asked for: give `num_heads={len(labels)}` `num_clusters={found_clusters}`"
        )
    if names is None or images.names is None:
        if fingerprint != images.fingerprint():
            raise SourceError(
                f"{setting} labels {labels.shape[1]} other images than the {len(images)} training images of {images.full_name}, which have no "
                "names to be matched by: use the images, and the split, of that run"
            )
        return labels.astype(np.int64)
    places = match_names(images.names, names)
    missing = [name for name, place in zip(images.names, places, strict=True) if place < 0]
    if missing:
        raise SourceError(
            f"{setting} lacks {len(missing)} of the {len(images)} training images of {images.full_name}, such as {missing[0]!r}: use the images, and "
            "the split, of that run"
        )
    return labels[:, places].astype(np.int64)
