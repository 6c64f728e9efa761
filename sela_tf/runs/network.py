"""The trained network of a run on disk: network.json says how to build it, model.weights.h5 holds its variables.

They are written after the last transport, with the labels. They suffice to label, probe and export, whatever becomes of the run's evaluation.
"""

from __future__ import annotations

import dataclasses
import os
import pathlib
from collections.abc import Mapping
from typing import Any

import keras

from sela_tf.data.pixel_rules import OLD_RULES, PixelRules
from sela_tf.files.atomic import whole_file
from sela_tf.files.digests import digest_of_file
from sela_tf.files.hdf5 import check_weights_file
from sela_tf.models.build import bare_network, build_model
from sela_tf.runs.description_check import check_description
from sela_tf.runs.finished import Finished, path_of, read_finished, write_finished
from sela_tf.runs.flagfile import read_config
from sela_tf.runs.names import FLAGS, LABELS, NETWORK, RESULTS, WEIGHTS
from sela_tf.runs.results import read_results
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig


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
            ValueError: it is not such an object, or a value is of another type or range.
        """
        check_description(network)
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
    """Gives a run that was made before networks described themselves its network.json, so that the network stays usable while the run is
    continued; results.json is the only other place of what it says.

    Raises:
        OSError: network.json cannot be written.
    """
    if (workdir / NETWORK).exists() or not ((workdir / RESULTS).exists() and (workdir / WEIGHTS).exists()):
        return
    write_finished(
        workdir,
        Finished(
            step=None, network=read_description(workdir).to_json(), weights=WEIGHTS, weights_sha256=digest_of_file(workdir / WEIGHTS),
            labels=LABELS, labels_sha256=None, settings=None,
        ),
    )  # fmt: skip


def save_weights(path: pathlib.Path, model: keras.Model) -> str:
    """Writes the weights of a model, without a rotation head or the state of the optimizer; returns the digest of the file.

    Raises:
        OSError: the file cannot be written.
    """
    with whole_file(path) as unfinished:
        bare_network(model).save_weights(unfinished)
    return digest_of_file(path)


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
    description, finished = _read(path)
    weights = path_of(path, finished, WEIGHTS)
    try:
        if finished is not None and digest_of_file(weights) != finished.weights_sha256:
            raise ValueError(f"not the weights that {NETWORK} was written with")
        check_weights_file(weights)
        model = description.build()
        model.load_weights(weights)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, RuntimeError) as error:
        why = str(error).splitlines()[0][:200]
        raise ConfigError(f"{weights} is missing or damaged, or of another network ({why}): {written_anew(path)}") from error
    return model


def written_anew(workdir: pathlib.Path) -> str:
    """Returns the way out where a file of a finished run is damaged, for the end of a message."""
    there = [str(workdir / name) for name in (NETWORK, RESULTS) if (workdir / name).exists()]
    return f"remove {' and '.join(there)}, and repeat the run's command, which writes them anew" if there else "repeat its command"


def _read(path: pathlib.Path) -> tuple[NetworkDescription, Finished | None]:
    """Returns the description, and what network.json says, None of a run that was made before there was one."""
    finished = read_finished(path)
    if finished is not None:
        try:
            return NetworkDescription.from_json(finished.network), finished
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f"{path / NETWORK} is damaged ({error}): {written_anew(path)}") from error
    if not (path / FLAGS).exists():
        raise ConfigError(f"{str(path)!r} holds no run (no {FLAGS})")
    if not (path / RESULTS).exists():
        raise ConfigError(f"the training of the run in {str(path)!r} is not finished: repeat its command to continue it")
    # Runs that were made before networks described themselves keep their shape and statistics in results.json.
    seen = read_results(path)["data"]
    try:
        described = describe_network(read_config(path), seen["image_shape"], seen["mean"], seen["variance"])
        check_description(described.to_json())
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise ConfigError(f"{path / RESULTS} is damaged ({error}): restore it") from error
    return described, None
