"""The settings of each component. Every field is a flag of the component's command."""

from __future__ import annotations

import dataclasses
import itertools
import os
import pathlib
import re
from typing import Any

from sela_tf.settings.commands import ProbeConfig
from sela_tf.settings.data import (
    check_class_level,
    class_level_option,
    classes_option,
    data_dir_option,
    download_option,
    eval_dataset_option,
    eval_fraction_option,
    max_rejected_option,
    memory_limit_option,
)
from sela_tf.settings.fields import SHARE, ConfigError, check_settings, option
from sela_tf.settings.paths import absolute_path, absolute_source, refuse_unwritable
from sela_tf.settings.training import SelaConfig

_IMAGE_KEY, _LABEL_KEY = "image/encoded", "image/class/label"
RUN = "Run"
"""The directory of the training run, below that of a model."""
FROM_EXAMPLES = ("dataset", "eval_dataset", "other_run", "workdir")
"""Settings of sela_tf that a component takes from its input artifacts, or has no use for."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class IngestionSettings:
    """The settings of `python -m components.data_ingestion`."""

    dataset: str = option(
        "",
        "Images: folder:DIR, idx:DIR, npz:FILE, digits, synthetic:N, tfrecords:GLOB (of tf.train.Examples with encoded images), or a TFDS name.",
    )
    examples: str = option("", "Directory to write: Split-train/, Split-eval/, an index and a manifest.")
    eval_dataset: str = eval_dataset_option()
    eval_fraction: float = eval_fraction_option(0.1, ", by a hash of the name")
    classes: str = classes_option("none leaves class labels out.")
    max_rejected: float = max_rejected_option("they are listed in rejected.json")
    class_level: str = class_level_option()
    images_per_shard: int = option(2000, "Images per shard, approximately.", at_least=1)
    image_key: str = option(_IMAGE_KEY, "For tfrecords: the feature that holds the image file.")
    label_key: str = option(_LABEL_KEY, "For tfrecords: the feature that holds the class label, if it exists.")
    data_dir: str = data_dir_option()
    download: bool = download_option()
    memory_limit: float = memory_limit_option("GiB that idx and npz may take; anything else is read as it is needed.")
    beam_pipeline_args: tuple[str, ...] = option(
        (),
        "Options of Apache Beam, such as --runner=DataflowRunner, which then does the work; by default threads of this process do.",
    )

    def __post_init__(self) -> None:
        if not self.dataset:
            raise ConfigError(
                "`dataset` is missing: folder:DIR, idx:DIR, npz:FILE, digits, synthetic:N, tfrecords:GLOB, or a TFDS name"
            )
        if not self.examples:
            raise ConfigError("`examples` is missing: the directory to write")
        check_settings(self)
        check_class_level(self.class_level)
        own_keys = (self.image_key, self.label_key) == (_IMAGE_KEY, _LABEL_KEY)
        if not own_keys and not self.dataset.startswith("tfrecords:"):
            raise ConfigError(f"`image_key` and `label_key` are for tfrecords:GLOB. Received: `dataset={self.dataset}`")
        for source in (self.dataset, self.eval_dataset):
            if source.startswith(("records:", "features:")):
                raise ConfigError(f"{source!r} need not be ingested: train on it as it is, `dataset={source}`")
        object.__setattr__(self, "dataset", absolute_source(self.dataset, tell=print))
        object.__setattr__(self, "eval_dataset", absolute_source(self.eval_dataset, tell=print))
        object.__setattr__(self, "examples", _directory(self.examples))
        for source in (self.dataset, self.eval_dataset):
            kind, _, path = source.partition(":")
            if kind == "folder" and f"{self.examples}/".startswith(f"{path.rstrip('/')}/"):
                raise ConfigError(f"`examples={self.examples}` lies in the folder that is ingested: name a directory elsewhere")


@dataclasses.dataclass(frozen=True, kw_only=True)
class SelfLabellingSettings:
    """The settings of `python -m components.self_labelling`, without those of the training."""

    examples: str = option("", "Directory that components.data_ingestion wrote.")
    model: str = option("", "Directory to write: Run/ with all of the training, Format-Serving/ with the model as it is served.")
    labels: str = option("", "Directory to write: labels.parquet.")
    metrics: str = option("", "Directory to write: results.json and metrics.jsonl.")
    scratch: str = option(
        "",
        "Directory in which the training runs if `model` is on a mounted bucket; it is copied to `model` at the end. By default in `model`.",
    )
    potentials: bool = option(True, "Serve clusters that are corrected by the potentials of the final weights.")
    warm_up: bool = option(
        False,
        "Add requests that TensorFlow Serving runs before it reports that it is ready; needs the extra serving.",
    )
    check: bool = option(True, "Compare the served model's answers with the network's, in a process without sela_tf.")

    def __post_init__(self) -> None:
        _require_directories(self, "examples", "model", "labels", "metrics")
        for name in ("model", "labels", "metrics"):
            if "://" in getattr(self, name):
                raise ConfigError(f"`{name}={getattr(self, name)}` must be a directory, perhaps of a mounted bucket, no URL")
        object.__setattr__(self, "scratch", self.scratch and absolute_path(self.scratch))


@dataclasses.dataclass(frozen=True, kw_only=True)
class LinearProbeSettings:
    """The settings of `python -m components.linear_probe`, without those of the probes."""

    examples: str = option("", "Directory that components.data_ingestion wrote, with class labels.")
    model: str = option("", "Directory of a model that components.self_labelling wrote.")
    evaluation: str = option("", "Directory to write: evaluation.json and evaluation.md.")
    blessing: str = option("", "Directory to write: a file BLESSED or NOT_BLESSED.")
    baseline: str = option(
        "", "Directory of another model. The model is blessed only if no figure is more than `max_drop` below this one's."
    )
    max_drop: float = option(0.0, "The largest drop below the baseline in kNN, linear probe and NMI.", bound=SHARE)
    min_knn: float = option(0.0, "Threshold of kNN accuracy with the first of `knn`; 0 for none.", bound=SHARE)
    min_linear_probe: float = option(
        0.0, "Threshold of the linear probe's accuracy on the embedding, or the last of `stages`; 0 for none.", bound=SHARE
    )
    min_nmi: float = option(0.0, "Threshold of NMI, mean of the heads; 0 for none.", bound=SHARE)

    def __post_init__(self) -> None:
        _require_directories(self, "examples", "model", "evaluation", "blessing")
        object.__setattr__(self, "baseline", self.baseline and _directory(self.baseline))
        check_settings(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PipelineSettings:
    """The settings of `python -m components.pipeline`, without those of ingestion, training and verdict."""

    root: str = option("", "Directory of all artifacts of a run on this machine; unchanged steps are not repeated.")
    compile: str = option("", "File NAME.yaml to write for Kubeflow Pipelines or Vertex, instead of running here.")
    image: str = option("sela-tf:latest", "Image of the container that the compiled steps run in (components/Dockerfile).")
    cpu: str = option("4", "Processors of a compiled step, as Kubernetes writes them.")
    memory: str = option("16G", "Memory of a compiled step, as Kubernetes writes it.")
    accelerator: str = option("", "Type of the accelerator of the compiled training, such as NVIDIA_L4 or nvidia.com/gpu.")
    retries: int = option(2, "Number of times that a failed compiled step is tried again.", at_least=0)
    scratch: str = option(
        "", "Directory in which a compiled step trains, such as a mounted volume; by default on the container's own disk."
    )

    def __post_init__(self) -> None:
        if bool(self.root) == bool(self.compile):
            raise ConfigError("give `root=DIR`, to run the pipeline here, or `compile=FILE.yaml`, to write it for a cluster")
        if self.compile and not self.compile.endswith((".yaml", ".yml")):
            raise ConfigError(f"`compile` must be a file NAME.yaml. Received: `compile={self.compile}`")
        check_settings(self)
        for name, pattern, example in (
            ("image", r"\S+", "REGISTRY/sela-tf:TAG"), ("cpu", r"\d+(\.\d+)?|\d+m", "4 or 500m"),
            ("memory", r"\d+(\.\d+)?([EPTGMK]i?)?", "16G or 16Gi"), ("accelerator", r"\S*", "NVIDIA_L4"),
        ):  # fmt: skip
            if not re.fullmatch(pattern, getattr(self, name)):
                raise ConfigError(f"`{name}` must be as {example}. Received: `{name}={getattr(self, name)}`")
        object.__setattr__(self, "root", self.root and absolute_path(self.root))
        object.__setattr__(self, "compile", self.compile and absolute_path(self.compile))
        for setting, path in (("root", self.root), ("compile", os.path.dirname(self.compile))):
            if path:
                refuse_unwritable(setting, pathlib.Path(path))
        if self.compile and not os.path.isdir(os.path.dirname(self.compile)):
            raise ConfigError(f"`compile={self.compile}`: there is no such directory: make it, or name another file")


def training_config(config: SelaConfig, examples: str) -> SelaConfig:
    """Returns `config` with the examples as its data set."""
    return dataclasses.replace(config, dataset=f"records:{_directory(examples)}", eval_dataset="")


def probe_config(probe: ProbeConfig, model: str, examples: str) -> ProbeConfig:
    """Returns `probe` with the run of the model as its run, and the examples as its data set."""
    return dataclasses.replace(probe, workdir=(f"{model}/{RUN}",), dataset=f"records:{_directory(examples)}", eval_dataset="")


def _require_directories(settings: Any, *names: str) -> None:
    """Checks that directories are given and none lies in another, and makes their paths absolute.

    Args:
        settings: The settings, which are changed.
        names: Names of the settings that are directories.

    Raises:
        ConfigError: A directory is missing or lies in another.
    """
    for name in names:
        if not getattr(settings, name):
            raise ConfigError(f"`{name}` is missing: a directory")
        object.__setattr__(settings, name, _directory(getattr(settings, name)))
    for one, other in itertools.permutations(names, 2):
        if f"{getattr(settings, one)}/".startswith(f"{getattr(settings, other)}/"):
            raise ConfigError(
                f"`{one}={getattr(settings, one)}` lies in `{other}={getattr(settings, other)}`: name another directory"
            )


def _directory(path: str) -> str:
    """Returns the absolute path of a directory; a URL without its last slash."""
    return path.rstrip("/") if "://" in path else absolute_path(path)


def missing_package(use: str, extra: str) -> ConfigError:
    """Returns the error that says which extra `use` needs, and with which TensorFlow it is tested."""
    from sela_tf.compat.releases import NEWEST, RELEASE

    elsewhere = (
        "" if RELEASE == NEWEST else f", in an environment with TensorFlow {NEWEST}: with {RELEASE} the components are not tested"
    )
    return ConfigError(f"{use}: pip install 'sela-tf[{extra}]'{elsewhere}")
