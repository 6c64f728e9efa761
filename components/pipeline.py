"""The door: ingestion, self-labelling and linear probe on Kubeflow Pipelines, here or compiled for a cluster.

python -m components.pipeline --flagfile=configs/digits.cfg --root=runs/pipeline --min_knn=0.95
python -m components.pipeline --flagfile=configs/digits.cfg --compile=pipeline.yaml --image=REGISTRY/sela-tf:TAG
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any, NamedTuple

from absl import flags as absl_flags

from components.settings import FROM_EXAMPLES, IngestionSettings, LinearProbeSettings, PipelineSettings
from sela_tf import flags
from sela_tf.config import ConfigError, ProbeConfig, SelaConfig
from sela_tf.door import run_command

_USAGE = """python -m components.pipeline --flagfile=configs/NAME.cfg --root=DIR [--min_knn=SHARE …] [--setting=value …]
python -m components.pipeline --flagfile=configs/NAME.cfg --compile=FILE.yaml [--image=IMAGE …]

Ingests --dataset, trains on it, probes the model and says whether it is good enough. The settings:
"""
_OF_INGESTION = ("images_per_shard", "image_key", "label_key", "beam_pipeline_args")
"""The others are settings of a training, too."""
_OF_VERDICT = ("max_drop", "min_knn", "min_linear_probe", "min_nmi", "baseline")
_OF_PROBES = ("stages", "protocol", "values", "knn", "untrained")


class _Asked(NamedTuple):
    settings: PipelineSettings
    ingestion: str
    """Lines of flagfiles."""
    training: str
    probing: str


def main(argv: list[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, 1 when a step failed, 2 for bad input, 128 + n after signal n."""
    return run_command(
        argv,
        name="components.pipeline",
        usage=_USAGE,
        define=_define,
        read=_read,
        work=_work,
        stopped="; the same command continues",
    )


def _define(values: absl_flags.FlagValues) -> None:
    flags.define(values, PipelineSettings)
    flags.define(values, SelaConfig)
    flags.define(values, IngestionSettings, leave_out=_but(IngestionSettings, _OF_INGESTION))
    flags.define(values, LinearProbeSettings, leave_out=_but(LinearProbeSettings, _OF_VERDICT))
    flags.define(values, ProbeConfig, leave_out=_but(ProbeConfig, _OF_PROBES))


def _but(kind: Any, names: tuple[str, ...]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)} - set(names)


def _read(values: absl_flags.FlagValues) -> _Asked:
    """Everything is checked before the first step."""
    if importlib.util.find_spec("kfp") is None:
        raise ConfigError("pipelines need kfp: pip install 'sela-tf[pipelines]'")
    settings = flags.settings(values, PipelineSettings)
    config = flags.settings(values, SelaConfig)
    shared = {name: getattr(config, name) for name in vars(config) if name in _but(IngestionSettings, _OF_INGESTION)}
    ingestion = flags.settings(values, IngestionSettings, **shared, examples="-")
    directories = dict.fromkeys(("examples", "model", "evaluation", "blessing"), "-")
    verdict = flags.settings(values, LinearProbeSettings, **directories)
    others = {field.name: field.default for field in dataclasses.fields(ProbeConfig) if field.name not in _OF_PROBES}
    probes = flags.settings(values, ProbeConfig, **{**others, "workdir": ("-",)})
    return _Asked(
        settings,
        flags.departures(ingestion, leave_out=("examples",)),
        flags.departures(config, leave_out=FROM_EXAMPLES),
        flags.departures(verdict, leave_out=tuple(directories)) + flags.departures(probes, leave_out=FROM_EXAMPLES),
    )


def _work(asked: _Asked) -> int:
    from kfp import compiler

    from components.kfp_steps import make_pipeline

    pipeline = make_pipeline(*asked)
    if asked.settings.compile:
        compiler.Compiler().compile(pipeline, asked.settings.compile)
        print(f"Written: {asked.settings.compile}, for Kubeflow Pipelines or Vertex. Its steps run in {asked.settings.image}")
        return 0
    return _run_here(pipeline, asked.settings.root)


def _run_here(pipeline: Callable[[], Any], root: str) -> int:
    """Each step in a process of its own; what they say appears as they say it."""
    from kfp import local

    local.init(runner=local.SubprocessRunner(use_venv=False), pipeline_root=f"{root}/kfp", raise_on_error=False)
    pipeline()
    return 0
