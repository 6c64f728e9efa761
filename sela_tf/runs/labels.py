"""The labels of a run on disk, labels.npz: the schema of its arrays, checked when they are read."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from sela_tf.data.image_set import ImageSet
from sela_tf.data.label_files import match_names
from sela_tf.files.archives import read_npz, write_npz
from sela_tf.files.atomic import whole_file
from sela_tf.runs.finished import Finished, path_of, read_finished
from sela_tf.runs.names import LABELS, NETWORK
from sela_tf.runs.network import written_anew
from sela_tf.settings.fields import ConfigError

CLUSTER_NAMES = "cluster_names"
"""The array of the names of clusters, where there are any."""

_LABELS_HOLD = (
    "labels", "potentials", "lam", "num_changes", "num_relabellings", "converged", "data_fingerprint", "source_rows"
)  # fmt: skip

_KINDS = {
    "labels": "iu", "training_labels": "iu", "potentials": "f", "lam": "f", "num_changes": "iu", "num_relabellings": "iu", "converged": "b",
    "source_rows": "iu", "step": "iu", "data_fingerprint": "U", "weights_sha256": "U", "names": "U",
}  # fmt: skip
"""The kinds of the arrays, as NumPy names them: whole numbers, floats, booleans, text."""


def read_labels(workdir: str | os.PathLike[str], shape: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns the arrays of labels.npz of a finished run.

    Args:
        workdir: the directory of the run.
        shape: (heads, clusters) of its network.

    Raises:
        ConfigError: the file is missing or damaged, or of another network.
    """
    directory = pathlib.Path(workdir).expanduser()
    finished = read_finished(directory)
    path = path_of(directory, finished, LABELS)
    try:
        arrays = read_npz(path)
        _check_labels(arrays, tuple(shape))
        if finished is not None:
            _check_network(arrays, finished)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is missing or damaged ({error}): {written_anew(directory)}") from error
    return arrays


def write_labels(path: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes labels.npz, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(path) as unfinished:
        write_npz(unfinished, arrays)


def digest_of_labels(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns the digest of the arrays of labels.npz, without the names of the clusters, which may be given later."""
    digest = hashlib.sha256()
    for name in sorted(set(arrays) - {CLUSTER_NAMES}):
        values = np.ascontiguousarray(arrays[name])
        digest.update(f"{name} {values.dtype.str} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


def known_changes(images: ImageSet, labels: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns how often each image's label changed while the run was trained on it, float32 [N], summed over heads.

    The changes are known if `images` hold all images that the run was trained on, by their names or source rows, and if these are
    unchanged by their fingerprint. All other images, or all images, get NaN.

    Args:
        images: N images.
        labels: arrays of the run's labels.npz.
    """
    if images.names is not None and "names" in labels:
        names = labels["names"].tolist()
        trained = np.array(match_names(names, images.names))
    else:
        names = None
        places = {row: place for place, row in enumerate(images.rows.tolist())}
        trained = np.array([places.get(row, -1) for row in labels["source_rows"].tolist()])
    found = np.full(len(images), np.nan, np.float32)
    if trained.min() < 0:
        return found
    same = images.take(trained)
    if names is not None:
        # The fingerprint is of the names as the run had them, which may be in another Unicode form.
        same = dataclasses.replace(same, names=tuple(names))
    if same.matches(str(labels["data_fingerprint"])):
        found[trained] = labels["num_changes"].sum(axis=0)
    return found


def _check_labels(arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> None:
    """Checks that the arrays of labels.npz are those of a network with `shape`, (heads, clusters).

    Raises:
        ValueError: an array is missing, or has another shape, type or range.
    """
    if not set(_LABELS_HOLD) <= set(arrays):
        raise ValueError("arrays are missing")
    for name, kinds in _KINDS.items():
        if name in arrays and arrays[name].dtype.kind not in kinds:
            raise ValueError(f"{name} of the type {arrays[name].dtype}")
    if arrays["potentials"].shape != shape or not np.isfinite(arrays["potentials"]).all():
        raise ValueError(f"potentials {list(arrays['potentials'].shape)} that are not finite numbers {list(shape)}")
    labels = arrays["labels"]
    if labels.ndim != 2 or len(labels) != shape[0] or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= shape[1]:
        raise ValueError(
            f"labels {labels.dtype} {list(labels.shape)} that are not numbers of {shape[1]} clusters for {shape[0]} heads"
        )
    rows = arrays["num_changes"].shape == labels.shape and arrays["source_rows"].shape == labels.shape[1:]
    lam = arrays["lam"]
    if not rows or arrays["num_relabellings"].shape != shape[:1] or lam.shape != () or not 0 < lam < np.inf:
        raise ValueError("num_changes, source_rows, num_relabellings or lam that do not belong to the labels")
    shapes = {"converged": shape[:1], "data_fingerprint": (), "step": (), "weights_sha256": (), "names": labels.shape[1:]}
    for name, wanted in shapes.items():
        if name in arrays and arrays[name].shape != wanted:
            raise ValueError(f"{name} {list(arrays[name].shape)} that are not {list(wanted)}")
    names = arrays.get(CLUSTER_NAMES)
    if names is not None and (names.shape != shape or names.dtype.kind != "U"):
        raise ValueError(f"{CLUSTER_NAMES} {names.dtype} {list(names.shape)} that are not text {list(shape)}")


def _check_network(arrays: Mapping[str, np.ndarray], finished: Finished) -> None:
    """Checks that labels.npz was made by the network that network.json describes.

    Raises:
        ValueError: it was not, or it was changed since.
    """
    # A run that was made before networks described themselves knows neither step nor digest.
    step = int(arrays["step"]) if "step" in arrays else None
    if step != finished.step:
        raise ValueError(f"labels of step {step}, and the network is of step {finished.step}")
    if "weights_sha256" in arrays and str(arrays["weights_sha256"]) != finished.weights_sha256:
        raise ValueError("labels of another network")
    if finished.labels_sha256 is not None and digest_of_labels(arrays) != finished.labels_sha256:
        raise ValueError(f"not the labels that {NETWORK} was written with")
