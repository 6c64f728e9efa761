"""Names of clusters and of single images: the file names.csv, and the array `cluster_names` of a run's labels.npz."""

from __future__ import annotations

import os
import pathlib
import unicodedata
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from sela_tf.data.csv_rows import CsvRow, read_csv, whole_number
from sela_tf.data.errors import SourceError
from sela_tf.files.archives import read_npz
from sela_tf.runs.finished import path_of, read_finished
from sela_tf.runs.labels import CLUSTER_NAMES, read_labels, write_labels
from sela_tf.runs.lock import lock_run
from sela_tf.runs.names import LABELS
from sela_tf.runs.network import read_description
from sela_tf.settings.fields import ConfigError

NAMES_HEADER = ("head", "cluster", "source", "name")
"""The first line of a file of names."""

_NOT_IN_A_NAME = ("Cc", "Zl", "Zp")
"""The Unicode categories of control characters, line breaks included."""


class Names(NamedTuple):
    """Names that a person gave to clusters and to single images."""

    clusters: dict[tuple[int, int], str]
    """The names of clusters by (head, cluster). Several clusters may share one."""
    images: dict[str, str]
    """The names of images by source: the file name below the folder, or the row in the source where images have no names. An empty one says
    that the image does not belong where it is."""

    def of_clusters(self, num_heads: int, num_clusters: int) -> np.ndarray:
        """Returns the names of all clusters, text `[T, K]`, empty where there is none."""
        found = [[self.clusters.get((head, cluster), "") for cluster in range(num_clusters)] for head in range(num_heads)]
        return np.array(found, np.str_)


def read_names(path: str | os.PathLike[str], *, num_heads: int, num_clusters: int, setting: str) -> Names:
    """Reads a file of names.

    The first line is `head,cluster,source,name`. A row has head and cluster, both from 0, or the source of an image. An empty name says
    nothing of a cluster, and of an image that it does not belong where it is. Names are stripped of blanks around them, and normalised to
    Unicode's form NFC.

    Args:
        path: The file: CSV in UTF-8, as `read_csv` reads it. Numbers may be written as 3.0.
        num_heads: The number of heads T.
        num_clusters: The number of clusters K of each head.
        setting: The name of the setting that gave the path, such as "names", for messages.

    Raises:
        SourceError: The file is malformed, or gives two names to a cluster or an image. The message names the line.
    """
    setting = f"`{setting}={path}`"
    clusters: dict[tuple[int, int], str] = {}
    images: dict[str, str] = {}
    lines: dict[tuple[int, int] | str, int] = {}
    for row in read_csv(path, [NAMES_HEADER], setting=setting).rows:
        head, cluster, source, _ = row.cells
        if bool(source.strip()) == bool(head.strip() or cluster.strip()) or bool(head.strip()) != bool(cluster.strip()):
            raise SourceError(
                f"line {row.number} of {setting} must have head and cluster, or source. Received: {','.join(row.cells)!r}"
            )
        name = _name(row, setting)
        if source.strip():
            key: tuple[int, int] | str = source
            before = images.get(source, "")
            images[source] = name or before
        else:
            key = _number(head, "head", num_heads, row, setting), _number(cluster, "cluster", num_clusters, row, setting)
            before = clusters.get(key, "")
            if name:
                clusters[key] = name
        if name and before not in ("", name):
            what = repr(key) if isinstance(key, str) else "cluster {1} of head {0}".format(*key)
            raise SourceError(
                f"line {row.number} of {setting} calls {what} {name!r}, and line {lines[key]} calls it {before!r}: leave one of them out"
            )
        if name:
            lines.setdefault(key, row.number)
    return Names(clusters, images)


def _name(row: CsvRow, setting: str) -> str:
    """Returns the name that a row gives, stripped and normalised.

    Raises:
        SourceError: It has control characters, such as line breaks.
    """
    name = unicodedata.normalize("NFC", row.cells[-1].strip())
    if any(unicodedata.category(character) in _NOT_IN_A_NAME for character in name):
        raise SourceError(f"line {row.number} of {setting}: a name is one line, without control characters. Received: {name!r}")
    return name


def _number(written: str, what: str, count: int, row: CsvRow, setting: str) -> int:
    """Returns the number of a head or a cluster.

    Raises:
        SourceError: It is not one of `count` numbers from 0.
    """
    number = whole_number(written)
    if number is None or not 0 <= number < count:
        raise SourceError(
            f"line {row.number} of {setting}: the {what} must be from 0 to {count - 1}. Received: {written.strip()!r}"
        )
    return number


def write_names(workdir: str | os.PathLike[str], names: Names) -> None:
    """Writes the names of clusters into labels.npz of a finished run, whole or not at all. They replace all earlier ones.

    Names of single images are not written. No other array changes.

    Args:
        workdir: the directory of the run.
        names: the names, of its heads and clusters.

    Raises:
        ConfigError: there is no finished run, its labels.npz is missing or damaged, or another process writes the run.
        StorageError: the disk is full.
    """
    path = pathlib.Path(workdir).expanduser().absolute()
    # Without a run, there is no directory to lock.
    read_description(path)
    try:
        descriptor = lock_run(path)
    except OSError as error:
        raise ConfigError(f"`workdir={workdir}` cannot be written: {error.strerror or error}") from error
    try:
        put_names(path, names)
    finally:
        os.close(descriptor)


def put_names(workdir: pathlib.Path, names: Names) -> None:
    """Does the work of `write_names`, for a caller that has locked the run."""
    described = read_description(workdir)
    shape = (described.num_heads, described.num_clusters)
    labels = {**read_labels(workdir, shape), CLUSTER_NAMES: names.of_clusters(*shape)}
    write_labels(path_of(workdir, read_finished(workdir), LABELS), labels)


def named(labels: Mapping[str, np.ndarray], num_heads: int, num_clusters: int) -> np.ndarray:
    """Returns the names of all clusters, text `[T, K]`, empty where there is none.

    Args:
        labels: arrays of labels.npz, those of older runs included.
        num_heads: the number of heads T.
        num_clusters: the number of clusters K of each head.
    """
    return labels.get(CLUSTER_NAMES, Names({}, {}).of_clusters(num_heads, num_clusters))


def names_to_use(path: str, labels: Mapping[str, np.ndarray], num_heads: int, num_clusters: int) -> Names:
    """Returns the names of a file, or else those of the run.

    Args:
        path: the file of the setting `names`; empty for the run's own names.
        labels: arrays of the run's labels.npz.
        num_heads: the number of heads T.
        num_clusters: the number of clusters K of each head.

    Raises:
        SourceError: the file is malformed.
    """
    if path:
        return read_names(path, num_heads=num_heads, num_clusters=num_clusters, setting="names")
    table = named(labels, num_heads, num_clusters)
    return Names({(head, cluster): str(name) for (head, cluster), name in np.ndenumerate(table) if name}, {})


def kept_names(workdir: pathlib.Path) -> dict[str, np.ndarray]:
    """Returns the array `cluster_names` of the labels.npz that is there, by its name; nothing where there is none.

    Clusters keep their numbers in a longer training, and so their names.
    """
    try:
        return read_npz(path_of(workdir, read_finished(workdir), LABELS), names=[CLUSTER_NAMES])
    except (OSError, ValueError):
        return {}
