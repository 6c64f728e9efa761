"""The door: ingestion, self-labelling and linear probe on Kubeflow Pipelines, here or compiled for a cluster.

python -m components.pipeline --flagfile=configs/digits.cfg --root=runs/pipeline --min_knn=0.95
python -m components.pipeline --flagfile=configs/digits.cfg --compile=pipeline.yaml --image=REGISTRY/sela-tf:TAG
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
import io
import os
import re
import shlex
import sys
import warnings
from collections.abc import Callable
from typing import Any, TextIO

from absl import flags as absl_flags

from components.settings import FROM_EXAMPLES, IngestionSettings, LinearProbeSettings, PipelineSettings, missing_package
from sela_tf.cli import flags
from sela_tf.cli.command import Command
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.settings.commands import ProbeConfig
from sela_tf.settings.fields import CHOSEN
from sela_tf.settings.training import SelaConfig

_USAGE = """python -m components.pipeline --flagfile=configs/NAME.cfg --root=DIR [--min_knn=SHARE …] [--setting=value …]
python -m components.pipeline --flagfile=configs/NAME.cfg --compile=FILE.yaml [--image=IMAGE …]

Ingests --dataset, trains on it, probes the model and says whether it is good enough. Flags:
"""
_LOG = "kfp.log"
_OF_INGESTION = ("images_per_shard", "image_key", "label_key", "beam_pipeline_args")
"""The others are settings of a training, too."""
_OF_VERDICT = ("max_drop", "min_knn", "min_linear_probe", "min_nmi", "baseline")
_OF_PROBES = ("stages", "protocol", "values", "knn", "untrained")


def _define(values: absl_flags.FlagValues) -> None:
    flags.define(values, PipelineSettings)
    flags.define(values, SelaConfig)
    flags.define(values, IngestionSettings, leave_out=_but(IngestionSettings, _OF_INGESTION))
    flags.define(values, LinearProbeSettings, leave_out=_but(LinearProbeSettings, _OF_VERDICT))
    flags.define(values, ProbeConfig, leave_out=_but(ProbeConfig, _OF_PROBES))


def _but(kind: Any, names: tuple[str, ...]) -> set[str]:
    return {field.name for field in dataclasses.fields(kind)} - set(names)


def _read(values: absl_flags.FlagValues) -> tuple[PipelineSettings, str, str, str]:
    """Returns the pipeline's settings, and the flags of ingestion, training and probing, each on one line as in a shell.

    Everything is checked before the first step.
    """
    if importlib.util.find_spec("kfp") is None:
        raise missing_package("pipelines need kfp", "pipelines")
    settings = flags.settings(values, PipelineSettings)
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
    return (
        settings,
        shlex.join(flags.departures(ingestion, leave_out=("examples",))),
        shlex.join(flags.departures(config, leave_out=FROM_EXAMPLES)),
        shlex.join([*flags.departures(verdict, leave_out=directories), *flags.departures(probes, leave_out=FROM_EXAMPLES)]),
    )


def _work(settings: PipelineSettings, ingestion: str, training: str, probing: str) -> int:
    from kfp import compiler

    from components.kfp_steps import make_pipeline

    pipeline = make_pipeline(settings, ingestion, training, probing)
    if settings.compile:
        compiler.Compiler().compile(pipeline, settings.compile)
        print(f"Written: {settings.compile}, for Kubeflow Pipelines or Vertex. Its steps run in {settings.image}")
        return 0
    return _run_here(pipeline, settings.root)


def _run_here(pipeline: Callable[[], Any], root: str) -> int:
    """Each step in a process of its own; what they say appears as they say it."""
    from kfp import local

    os.makedirs(root, exist_ok=True)
    with open(f"{root}/{_LOG}", "a") as log, warnings.catch_warnings():
        # of the steps' image, which is for a cluster
        warnings.filterwarnings("ignore", message="You may be attemp", category=RuntimeWarning)
        local.init(local.SubprocessRunner(use_venv=False), pipeline_root=f"{root}/kfp", raise_on_error=True)
        try:
            with contextlib.redirect_stdout(_Steps(sys.stdout, log)):
                pipeline()
        except RuntimeError as error:
            print(f"components.pipeline: a step failed, see above. All that kfp says: {root}/{_LOG}", file=sys.stderr)
            log.write(f"{error}\n")
            return 1
    print(f"Artifacts: {root}")
    return 0


class _Steps(io.TextIOBase):
    """A stream that shows the lines of the steps, under their names, out of all that kfp writes; everything goes into the log."""

    def __init__(self, terminal: TextIO, log: TextIO):
        self._terminal, self._log = terminal, log
        self._line, self._is_step = "", False

    def write(self, text: str) -> int:
        self._log.write(text)
        self._log.flush()
        *whole, self._line = (self._line + text).split("\n")
        for line in whole:
            self._show(line)
        return len(text)

    def _show(self, line: str) -> None:
        started = re.search(r"Executing task .*?'(.+?)'", line)
        if started:
            self._tell(f"\n== {started[1]}")
        elif "[KFP Executor" in line:
            # what it logs itself, Beam's words included; its input, in lines of its own, comes before the step's words
            self._is_step = self._is_step and "Got executor_input" not in line
        elif self._is_step and line.startswith("    "):
            self._tell(line[4:])
        elif line == "    }":  # the end of what kfp tells the step
            self._is_step = True
        elif not line.startswith("    "):
            self._is_step = False

    def _tell(self, line: str) -> None:
        # kfp indents what is printed meanwhile
        self._terminal.write(line + "\n")
        self._terminal.flush()


main = Command(
    name="components.pipeline",
    usage=_USAGE,
    settings=(PipelineSettings, SelaConfig, IngestionSettings, LinearProbeSettings, ProbeConfig),
    work=_work,
    define=_define,
    read=_read,
    stopped="; the same command continues",
)

if __name__ == "__main__":
    sys.exit(main())
