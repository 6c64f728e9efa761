"""The trained network of a run on disk: network.json says how to build it, model.weights.h5 holds its variables.

Both are written right after training. They suffice to label, probe and export, whatever becomes of the run's evaluation.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import keras

from sela_tf import __version__
from sela_tf.data.pixel_rules import OLD_RULES, PixelRules
from sela_tf.files.atomic import whole_file, write_whole
from sela_tf.models.build import bare_network, build_model
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.names import FLAGS, NETWORK, RESULTS, WEIGHTS
from sela_tf.runs.results import read_results
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig

_FORMAT = 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class NetworkDescription:
    """All that `build_model` has to be told to make the same network again, but for its weights."""

    backbone: str
    image_shape: tuple[int, ...]
    """(height, width, channels), or (values,) of vectors."""
    num_heads: int
    num_clusters: int
    width: int
    hidden_units: int
    mean: tuple[float, ...]
    """The mean of each channel over the training images, in [0, 255]."""
    variance: tuple[float, ...]
    """The variance of each channel over the training images."""
    synchronized: bool
    """Batch statistics over all devices."""
    dtype: str | None
    """The precision policy; None for Keras' own."""
    pixel_rules: PixelRules = OLD_RULES
    """The rules by which image files become pixels; the old ones if network.json has none."""

    def build(self, *, weights: str = "") -> keras.Model:
        """The network before its first step; one of keras.applications starts from the file `weights` where one is named.

        Raises:
            ValueError: the images are too small for it, or the file is not for it.
        """
        shape = {name: value for name, value in vars(self).items() if name != "pixel_rules"}
        return build_model(**shape, weights=weights)

    def to_json(self) -> dict[str, Any]:
        """Returns the description as `from_json` reads it; old pixel rules are left out."""
        network = {**vars(self), "pixel_rules": self.pixel_rules._asdict()}
        if self.pixel_rules.are_old:
            del network["pixel_rules"]
        return network

    @classmethod
    def from_json(cls, network: Mapping[str, Any]) -> NetworkDescription:
        """Returns the description that `to_json` gave, written as JSON and read back.

        Raises:
            ValueError, KeyError, TypeError, AttributeError: it is not such an object.
        """
        fields: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in network.items()}
        if "pixel_rules" in fields:
            rules = fields["pixel_rules"]
            fields["pixel_rules"] = PixelRules(tuple(rules["background"]), int(rules["largest"]), int(rules.get("shorter_side", 0)))
        return cls(**fields)


def describe_network(
    config: SelaConfig,
    image_shape: tuple[int, ...],
    mean: tuple[float, ...],
    variance: tuple[float, ...],
    pixel_rules: PixelRules = OLD_RULES,
) -> NetworkDescription:
    """The network that the settings ask for, for images of this shape, mean, variance and rules."""
    return NetworkDescription(
        backbone=config.backbone,
        image_shape=tuple(map(int, image_shape)),
        num_heads=config.num_heads,
        num_clusters=config.num_clusters,
        width=config.width,
        hidden_units=config.hidden_units,
        mean=tuple(map(float, mean)),
        variance=tuple(map(float, variance)),
        synchronized=config.sync_batch_norm,
        dtype=None if config.mixed_precision == "none" else f"mixed_{config.mixed_precision}",
        pixel_rules=pixel_rules,
    )


def describe_older_run(workdir: pathlib.Path) -> None:
    """Gives a run that was made before networks described themselves its network.json, so that the network stays usable while the run,
    continued, is without results.json, the only other place of what it says."""
    if (workdir / NETWORK).exists() or not ((workdir / RESULTS).exists() and (workdir / WEIGHTS).exists()):
        return
    _write(workdir, read_description(workdir), _digest(workdir / WEIGHTS), step=None)


def save_network(workdir: pathlib.Path, model: keras.Model, description: NetworkDescription, *, step: int) -> str:
    """Writes network.json and the weights of `model` after `step` steps, without a rotation head or the state of the optimizer; returns the
    digest of the weights.

    The description holds the digest of the weights, so that two files of different steps are not taken for one network.
    """
    with whole_file(workdir / WEIGHTS) as unfinished:
        try:
            bare_network(model).save_weights(unfinished)
        except (OSError, RuntimeError) as error:
            # The HDF5 library reports a full disk by an error of its own.
            raise ConfigError(
                f"{unfinished} cannot be written ({str(error).splitlines()[0]}): make room, and repeat the command"
            ) from error
        digest = _digest(unfinished)
    _write(workdir, description, digest, step=step)
    return digest


def _write(workdir: pathlib.Path, description: NetworkDescription, digest: str, *, step: int | None) -> None:
    described = {
        "format": _FORMAT, "sela_tf": __version__, "step": step, "weights": WEIGHTS, "weights_sha256": digest,
        "network": description.to_json(),
    }  # fmt: skip
    write_whole(workdir / NETWORK, json.dumps(described, indent=1) + "\n")


def read_description(workdir: str | os.PathLike[str]) -> NetworkDescription:
    """The network of the run in `workdir`.

    Raises:
        ConfigError: there is no run, its training is not finished, or network.json is damaged.
    """
    return _read(pathlib.Path(workdir).expanduser())[0]


def load_run(workdir: str | os.PathLike[str]) -> keras.Model:
    """The trained network of a run: images [B, H, W, C] in [0, 255] to logits [B, T, K].

    Its layers are named: "embedding" is the representation, "heads" the MultiHead layer.

    Raises:
        ConfigError: the directory holds no trained network, or its files are damaged.
    """
    path = pathlib.Path(workdir).expanduser()
    description, digest = _read(path)
    try:
        if digest is not None and _digest(path / WEIGHTS) != digest:
            raise ValueError(f"not the weights that {NETWORK} was written with")
        model = description.build()
        model.load_weights(path / WEIGHTS)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        why = str(error).splitlines()[0][:200]
        raise ConfigError(
            f"{path / WEIGHTS} is missing or damaged, or of another network ({why}): remove {path / RESULTS}, if it is "
            "there, and repeat the run's command, which writes both anew"
        ) from error
    return model


def _read(path: pathlib.Path) -> tuple[NetworkDescription, str | None]:
    """(the description, the digest of the weights where it was kept)."""
    if not (path / FLAGS).exists() and not (path / NETWORK).exists():
        raise ConfigError(f"{str(path)!r} holds no run (no {FLAGS})")
    if (path / NETWORK).exists():
        return _from_json(path / NETWORK)
    if not (path / RESULTS).exists():
        raise ConfigError(f"the training of the run in {str(path)!r} is not finished: repeat its command to continue it")
    # Runs that were made before networks described themselves keep their shape and statistics in results.json.
    seen = read_results(path)["data"]
    return describe_network(read_config(path), seen["image_shape"], seen["mean"], seen["variance"]), None


def _from_json(path: pathlib.Path) -> tuple[NetworkDescription, str]:
    try:
        described = json.loads(path.read_text())
        if described["format"] != _FORMAT:
            raise ValueError(f"its format is {described['format']}, this version of sela_tf reads {_FORMAT}")
        return NetworkDescription.from_json(described["network"]), described["weights_sha256"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(
            f"{path} is damaged ({error}): remove {path.parent / RESULTS}, if it is there, and repeat the run's command, "
            f"which writes both anew"
        ) from error


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
