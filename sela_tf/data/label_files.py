"""Files of labels that training reads: known clusters of some images (CSV), and the labels of all images from another run (npz)."""

from __future__ import annotations

import os
import unicodedata
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from sela_tf.data.csv_rows import read_csv, whole_number
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.files.archives import read_npz

KNOWN_LABELS_HEADERS = (("name", "cluster"), ("index", "cluster"))
"""The first lines of a file of known labels."""


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
    (kind, _), rows = read_csv(path, KNOWN_LABELS_HEADERS, setting=setting)
    if kind == "name" and images.names is None:
        raise SourceError(f"the images have no names: begin {setting} with index,cluster")
    places, other_places = find_images([row.cells[0] for row in rows], images, others, by_name=kind == "name")
    known = np.full(len(images), -1, np.int64)
    num_left_out = 0
    for row, place, other_place in zip(rows, places, other_places, strict=True):
        (key, written), where = row.cells, f"line {row.number} of {setting}"
        if place < 0 and other_place < 0:
            raise unknown_image(where, key, images, by_name=kind == "name")
        cluster = whole_number(written) if written.strip() else -1
        if cluster is None or not -1 <= cluster < num_clusters:
            raise SourceError(
                f"{where}: the cluster must be from 0 to {num_clusters - 1}, or -1 or empty where it is not known. "
                f"Received: {written.strip()!r}"
            )
        if cluster < 0:
            continue
        if place < 0:
            num_left_out += 1
            continue
        if known[place] not in (-1, cluster):
            raise SourceError(f"{where}: {key!r} was said to be of cluster {known[place]} before. Received: {written.strip()}")
        known[place] = cluster
    return KnownLabels(known, num_left_out)


def find_images(
    keys: Sequence[str], images: ImageSet, others: Sequence[ImageSet] = (), *, by_name: bool
) -> tuple[list[int], list[int]]:
    """Finds images by their names, in either Unicode form, or by their rows in the source.

    Args:
        keys: Names, or rows written as `whole_number` reads them.
        images: The N images.
        others: More images of the same source.
        by_name: True where the keys are names. `images` have names then.

    Returns:
        (the place of each key among `images`, and among all `others` together; -1 if it is not there).
    """
    if by_name:
        other_names = [name for each in others for name in each.names or ()]
        found_names = {*(images.names or ()), *other_names}
        # Blanks around a name belong to it only if an image is called so.
        keys = [key if key in found_names else key.strip() for key in keys]
        return match_names(keys, images.names or ()), match_names(keys, other_names)
    # Sets without `source_rows` come from another source or split, and their rows do not count here.
    rows = [each.source_rows for each in others if each.source_rows is not None]
    return _match_rows(keys, images.rows), _match_rows(keys, np.concatenate([np.arange(0), *rows]))


def unknown_image(where: str, key: str, images: ImageSet, *, by_name: bool) -> SourceError:
    """Returns the error that a file names an image that there is not.

    Args:
        where: The file, and the line if it is known.
        key: The name or the row of the image.
        images: The training images.
        by_name: True where the key is a name.
    """
    return SourceError(
        f"{where}: none of the {len(images)} training images, nor of those left out, has the {'name' if by_name else 'row'} {key!r}"
    )


def _match_rows(keys: Sequence[str], rows: np.ndarray) -> list[int]:
    """Returns the place of each key among `rows`; -1 if it is not there."""
    places: dict[int | None, int] = {row: place for place, row in enumerate(rows.tolist())}
    return [places.get(whole_number(key), -1) for key in keys]


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
        _check_run(archive)
    except (OSError, ValueError) as error:
        raise SourceError(f"{setting} is not the labels.npz of a run, or not a whole one ({error})") from error
    return archive


def _check_run(archive: Mapping[str, np.ndarray]) -> None:
    """Checks the arrays that are read of the labels.npz of another run.

    Raises:
        ValueError: One has another shape, type or range.
    """
    labels, potentials, names = archive["labels"], archive["potentials"], archive.get("names")
    if potentials.ndim != 2 or potentials.dtype.kind != "f" or 0 in potentials.shape:
        raise ValueError(f"potentials {potentials.dtype} {list(potentials.shape)} that are not floats [T, K]")
    heads, clusters = potentials.shape
    if labels.ndim != 2 or labels.dtype.kind not in "iu" or len(labels) != heads or 0 in labels.shape:
        raise ValueError(f"labels {labels.dtype} {list(labels.shape)} that are not whole numbers [T, N] of {heads} heads")
    if labels.min() < 0 or labels.max() >= clusters:
        raise ValueError(f"labels from {labels.min()} to {labels.max()} of {clusters} clusters")
    if names is not None and (names.dtype.kind != "U" or names.shape != labels.shape[1:]):
        raise ValueError(f"names {names.dtype} {list(names.shape)} that are not text [{labels.shape[1]}]")


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
        if not images.matches(fingerprint):
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


def places_in_run(images: ImageSet, archive: Mapping[str, np.ndarray], *, setting: str) -> np.ndarray:
    """Matches images with those that a finished run was trained on: by name, in either Unicode form, or without names by their rows.

    Rows are matched if the set begins as that of the run did: the fingerprint of the run's rows tells whether they hold the same images.

    Args:
        images: The N training images.
        archive: The arrays of the run's labels.npz.
        setting: The setting that names the run, with its value, for messages.

    Returns:
        The place of each image among those of the run, int64 `[N]`; -1 for a new image.

    Raises:
        SourceError: No image is one of the run's; or images without names are others in the rows of the run.
    """
    rows, names = archive["source_rows"], archive["names"].tolist() if "names" in archive else None
    if names is not None and images.names is not None:
        places = np.array(match_names(images.names, names), np.int64)
        if places.max() < 0:
            raise SourceError(
                f"{setting}: none of its {len(names)} training images, such as {names[0]!r}, is among the {len(images)} of {images.full_name}, such "
                f"as {images.names[0]!r}: names below the folder must be the same"
            )
        return places
    earlier = {row: place for place, row in enumerate(rows.tolist())}
    places = np.array([earlier.get(row, -1) for row in images.rows.tolist()], np.int64)
    same = np.flatnonzero(places >= 0)
    same = same[np.argsort(places[same])]
    if len(same) < len(rows) or not images.take(same).matches(str(archive["data_fingerprint"])):
        raise SourceError(
            f"{setting} was trained on {len(rows)} images without names to be matched by, and these are not the same in their rows of "
            f"{images.full_name}: put new images behind the old ones, and leave none out"
        )
    return places
