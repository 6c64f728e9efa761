"""Finished network of a run: network.json names the weights and the labels that belong together, with their digests and settings.

A longer training writes its weights and labels under names of their own, `model-00004000.weights.h5` and `labels-00004000.npz`. One rename
of network.json then makes them the run's; after it they take the places of the earlier ones, `model.weights.h5` and `labels.npz`.
Whoever is stopped in between leaves the earlier network or the later one, whole, with its labels.
"""

from __future__ import annotations

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from sela_tf import __version__
from sela_tf.files.atomic import write_whole
from sela_tf.files.digests import digest_of_json
from sela_tf.files.json_objects import json_object
from sela_tf.runs.names import LABELS, NETWORK, WEIGHTS
from sela_tf.settings.fields import ConfigError

_FORMAT, _DIGEST = 1, "sha256"
_OWN_NAME = re.compile(r"(model|labels)-\d{8,}\.(weights\.h5|npz)")


class Finished(NamedTuple):
    """The network that a run has finished, by the names and digests of its files."""

    step: int | None
    """The steps that the network has taken; None of a run that was made before networks described themselves."""
    network: dict[str, Any]
    """The description of the network, see `NetworkDescription`."""
    weights: str
    """The file of the weights, in the directory of the run."""
    weights_sha256: str
    labels: str
    """The file of the labels."""
    labels_sha256: str | None
    """The digest of the arrays of the labels, see `digest_of_labels`; None of runs that were made before there was one."""
    settings: tuple[str, ...] | None
    """The settings that the network was trained with, as flags; None of runs that were made before they were kept here."""

    superseded: bool = False
    """The run has begun anew since: this network stays until there is another."""

    def identity(self) -> dict[str, Any]:
        """Returns what tells this network from every other one, for results.json."""
        return {"step": self.step, "weights_sha256": self.weights_sha256, "labels_sha256": self.labels_sha256}


def own_names(step: int) -> tuple[str, str]:
    """Returns the names that weights and labels of a network of `step` steps are first written under."""
    return f"model-{step:08d}.weights.h5", f"labels-{step:08d}.npz"


def read_finished(workdir: str | os.PathLike[str]) -> Finished | None:
    """Returns what network.json says; None where there is none.

    Raises:
        ConfigError: network.json is damaged.
    """
    path = pathlib.Path(workdir).expanduser() / NETWORK
    try:
        found = json_object(path.read_bytes())
        digest = found.pop(_DIGEST, None)
        # Networks that were described before the description had a digest of itself have no digest of their labels either.
        if digest != digest_of_json(found) if digest is not None else "labels_sha256" in found:
            raise ValueError("it was changed since it was written")
        if found["format"] != _FORMAT:
            raise ValueError(f"its format is {found['format']}, this version of sela_tf reads {_FORMAT}")
        settings = found.get("settings")
        weights, labels = (_file(found.get(name, default), default) for name, default in (("weights", WEIGHTS), ("labels", LABELS)))
        return Finished(
            step=found["step"], network=dict(found["network"]), weights=weights, weights_sha256=str(found["weights_sha256"]), labels=labels,
            labels_sha256=found.get("labels_sha256"), settings=None if settings is None else tuple(map(str, settings)),
            superseded=bool(found.get("superseded", False)),
        )  # fmt: skip
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path} is damaged ({error}): remove it, and repeat the run's command, which writes it anew") from error


def write_finished(workdir: pathlib.Path, finished: Finished) -> None:
    """Makes a network and its labels the run's, by one rename; then they take the places of the earlier ones.

    Raises:
        OSError: network.json cannot be written; what was finished before is as it was.
    """
    settings = None if finished.settings is None else list(finished.settings)
    described = {"format": _FORMAT, "sela_tf": __version__, **finished._asdict(), "settings": settings}
    write_whole(workdir / NETWORK, json.dumps({**described, _DIGEST: digest_of_json(described)}, indent=1) + "\n")
    settle(workdir, finished)


def settle(workdir: pathlib.Path, finished: Finished | None) -> None:
    """Lets the files that network.json names take the places of the earlier ones, as far as they have not, and removes others of their kind,
    which a training left that was stopped before its network was the run's."""
    for own, place in () if finished is None else ((finished.weights, WEIGHTS), (finished.labels, LABELS)):
        if own != place and (workdir / own).exists():
            os.replace(workdir / own, workdir / place)
    for path in workdir.iterdir():
        if _OWN_NAME.fullmatch(path.name):
            path.unlink()


def path_of(workdir: pathlib.Path, finished: Finished | None, place: str) -> pathlib.Path:
    """Returns the file of the weights or of the labels of a run.

    Args:
        workdir: the directory of the run.
        finished: what `read_finished` returns.
        place: WEIGHTS or LABELS.
    """
    own = workdir / (place if finished is None else finished.weights if place == WEIGHTS else finished.labels)
    return own if own.exists() else workdir / place


def _file(name: Any, default: str) -> str:
    """Returns the name of a file of the run.

    Raises:
        ValueError: it is none that a run has, such as a path to elsewhere.
    """
    if name != default and not (isinstance(name, str) and _OWN_NAME.fullmatch(name)):
        raise ValueError(f"it names {name!r}")
    return str(name)


def belongs(results: Mapping[str, Any], finished: Finished | None) -> bool:
    """Tests whether a verdict is the one on the network of the run; verdicts that were made before they said so are."""
    return "network" not in results or (finished is not None and results["network"] == finished.identity())
