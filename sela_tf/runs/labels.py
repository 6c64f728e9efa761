"""The labels of a run on disk, labels.npz: the schema of its arrays, checked when they are read."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np

from sela_tf.files.archives import read_npz
from sela_tf.runs.names import LABELS, NETWORK, RESULTS
from sela_tf.settings.fields import ConfigError

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
