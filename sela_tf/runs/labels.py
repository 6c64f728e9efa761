"""The labels of a run on disk, labels.npz: the schema of its arrays, checked when they are read."""

from __future__ import annotations

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from sela_tf.data.image_set import ImageSet
from sela_tf.data.label_files import match_names
from sela_tf.files.archives import read_npz, write_npz
from sela_tf.files.atomic import whole_file
from sela_tf.runs.names import LABELS, NETWORK, RESULTS
from sela_tf.settings.fields import ConfigError

CLUSTER_NAMES = "cluster_names"
"""The array of the names of clusters, where there are any."""

_LABELS_HOLD = (
    "labels", "potentials", "lam", "num_changes", "num_relabellings", "converged", "data_fingerprint", "source_rows"
)  # fmt: skip


def read_labels(workdir: str | os.PathLike[str], shape: Sequence[int]) -> dict[str, np.ndarray]:
    """Returns the arrays of labels.npz of a finished run.

    Args:
        workdir: the directory of the run.
        shape: (heads, clusters) of its network.

    Raises:
        ConfigError: the file is missing or damaged, or of another network.
    """
    path = pathlib.Path(workdir).expanduser() / LABELS
    try:
        arrays = read_npz(path)
        _check_labels(arrays, tuple(shape))
        _check_step(arrays, path.parent / NETWORK)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is missing or damaged ({error}): remove {path.parent / RESULTS}, if it is there, and repeat the run's "
            "command, which writes both anew"
        ) from error
    return arrays


def write_labels(workdir: pathlib.Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes labels.npz, whole or not at all.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(workdir / LABELS) as unfinished:
        write_npz(unfinished, arrays)


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
    if same.fingerprint() == str(labels["data_fingerprint"]):
        found[trained] = labels["num_changes"].sum(axis=0)
    return found


def _check_labels(arrays: Mapping[str, np.ndarray], shape: tuple[int, ...]) -> None:
    """Checks that the arrays of labels.npz are those of a network with `shape`, (heads, clusters).

    Raises:
        ValueError: an array is missing, or has another shape, type or range.
    """
    if not set(_LABELS_HOLD) <= set(arrays):
        raise ValueError("arrays are missing")
    if arrays["potentials"].shape != shape or not np.isfinite(arrays["potentials"]).all():
        raise ValueError(f"potentials {list(arrays['potentials'].shape)} that are not finite numbers {list(shape)}")
    labels = arrays["labels"]
    if labels.ndim != 2 or len(labels) != shape[0] or labels.dtype.kind not in "iu" or labels.min() < 0 or labels.max() >= shape[1]:
        raise ValueError(
            f"labels {labels.dtype} {list(labels.shape)} that are not numbers of {shape[1]} clusters for {shape[0]} heads"
        )
    rows = arrays["num_changes"].shape == labels.shape and arrays["source_rows"].shape == labels.shape[1:]
    if not rows or arrays["num_relabellings"].shape != shape[:1] or not arrays["lam"] > 0:
        raise ValueError("num_changes, source_rows, num_relabellings or lam that do not belong to the labels")
    names = arrays.get(CLUSTER_NAMES)
    if names is not None and (names.shape != shape or names.dtype.kind != "U"):
        raise ValueError(f"{CLUSTER_NAMES} {names.dtype} {list(names.shape)} that are not text {list(shape)}")


def _check_step(arrays: Mapping[str, np.ndarray], network: pathlib.Path) -> None:
    """Checks that labels.npz was made by the network that network.json describes.

    Raises:
        ValueError: the network was trained further, and stopped before its last transport.
    """
    if not network.exists():
        return
    described = json.loads(network.read_text())
    # A run that was made before networks described themselves knows neither step nor digest.
    step = int(arrays["step"]) if "step" in arrays else None
    if step != described["step"]:
        raise ValueError(f"labels of step {step}, and the network is of step {described['step']}")
    if "weights_sha256" in arrays and str(arrays["weights_sha256"]) != described["weights_sha256"]:
        raise ValueError("labels of another network")
