"""The flags of the steps of a pipeline: those of ingestion, training, probes and verdict in one command, and apart again, a line for each step."""

from __future__ import annotations

import dataclasses
import shlex
from typing import Any, NamedTuple

from absl import flags as absl_flags

from components.settings import FROM_EXAMPLES, IngestionSettings, LinearProbeSettings
from sela_tf.cli import flags
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.settings.commands import ProbeConfig
from sela_tf.settings.fields import CHOSEN
from sela_tf.settings.training import SelaConfig

STEP_SETTINGS = (SelaConfig, IngestionSettings, LinearProbeSettings, ProbeConfig)
_OF_INGESTION = ("images_per_shard", "image_key", "label_key", "beam_pipeline_args")
"""The others are settings of a training, too."""
_OF_VERDICT = ("max_drop", "min_knn", "min_linear_probe", "min_nmi", "baseline")
_OF_PROBES = ("stages", "protocol", "values", "knn", "untrained")


class StepFlags(NamedTuple):
    """The flags of each step, on one line as in a shell."""

    ingestion: str
    training: str
    probing: str


def define_step_flags(values: absl_flags.FlagValues) -> None:
    """Adds the flags of all steps."""
    flags.define(values, SelaConfig)
    flags.define(values, IngestionSettings, leave_out=_but(IngestionSettings, _OF_INGESTION))
    flags.define(values, LinearProbeSettings, leave_out=_but(LinearProbeSettings, _OF_VERDICT))
    flags.define(values, ProbeConfig, leave_out=_but(ProbeConfig, _OF_PROBES))


def step_flags(values: absl_flags.FlagValues) -> StepFlags:
    """Returns what is told to each step. All settings are checked.

    Raises:
        ConfigError: A value cannot be used.
    """
    config = flags.settings(values, SelaConfig)
    shared = {
        field.name: field.default if getattr(config, field.name) is CHOSEN else getattr(config, field.name)
        for field in dataclasses.fields(IngestionSettings)
        if field.name in vars(config)
    }
    ingestion = flags.settings(values, IngestionSettings, **shared, examples="-")
    directories = {name: f"-{name}" for name in ("examples", "model", "evaluation", "blessing")}
    verdict = flags.settings(values, LinearProbeSettings, **directories)
    others = {field.name: field.default for field in dataclasses.fields(ProbeConfig) if field.name not in _OF_PROBES}
    probes = flags.settings(values, ProbeConfig, **{**others, "workdir": ("-",)})
    # a verdict is about the embedding; of 60,000 images, logistic regressions on all stages take an hour
    probes = dataclasses.replace(probes, stages=probes.stages or (EMBEDDING,))
    return StepFlags(
        shlex.join(flags.departures(ingestion, leave_out=("examples",))),
        shlex.join(flags.departures(config, leave_out=FROM_EXAMPLES)),
        shlex.join([*flags.departures(verdict, leave_out=directories), *flags.departures(probes, leave_out=FROM_EXAMPLES)]),
    )


def _but(kind: Any, names: tuple[str, ...]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)} - set(names)
