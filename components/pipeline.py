"""The door: ingestion, self-labelling and linear probe on Kubeflow Pipelines, here or compiled for a cluster.

python -m components.pipeline --flagfile=configs/digits.cfg --root=runs/pipeline --min_knn=0.95
python -m components.pipeline --flagfile=configs/digits.cfg --compile=pipeline.yaml --image=REGISTRY/sela-tf:TAG
"""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import os
import re
import sys
import threading
from typing import TextIO

from absl import flags as absl_flags

from components.settings import PipelineSettings, missing_package
from components.step_flags import STEP_SETTINGS, define_step_flags, step_flags
from sela_tf.cli import flags
from sela_tf.cli.command import Command
from sela_tf.tasks.child_group import ChildGroup
from sela_tf.tasks.lost import WorkerLostError, how_it_ended, signal_of

_USAGE = """python -m components.pipeline --flagfile=configs/NAME.cfg --root=DIR [--min_knn=SHARE …] [--setting=value …]
python -m components.pipeline --flagfile=configs/NAME.cfg --compile=FILE.yaml [--image=IMAGE …]

Ingests --dataset, trains on it, probes the model and says whether it is good enough. Flags:
"""
_LOG = "kfp.log"
_GRACE_SECONDS = 15
"""Time in which steps save their state after a signal. Kubernetes kills after 30 seconds, in which all processes have to end."""


def _define(values: absl_flags.FlagValues) -> None:
    flags.define(values, PipelineSettings)
    define_step_flags(values)


def _read(values: absl_flags.FlagValues) -> tuple[PipelineSettings, str, str, str]:
    """Returns the pipeline's settings, and the flags of each step. Everything is checked before the first step."""
    if importlib.util.find_spec("kfp") is None:
        raise missing_package("pipelines need kfp", "pipelines")
    return flags.settings(values, PipelineSettings), *step_flags(values)


def _work(settings: PipelineSettings, ingestion: str, training: str, probing: str) -> int:
    from kfp import compiler

    from components.kfp_steps import make_pipeline

    if settings.compile:
        pipeline = make_pipeline(settings, ingestion, training, probing)
        compiler.Compiler().compile(pipeline, settings.compile)
        print(f"Written: {settings.compile}, for Kubeflow Pipelines or Vertex. Its steps run in {settings.image}")
        return 0
    return _run_here(settings, ingestion, training, probing)


def _run_here(settings: PipelineSettings, *flags_of_steps: str) -> int:
    """Runs the pipeline in a process group of its own, shows what the steps say as they say it, and returns the status of a step that failed.

    Raises:
        WorkerLostError: A step was ended by a signal.
    """
    os.makedirs(settings.root, exist_ok=True)
    child = ChildGroup("components.kfp_process")
    try:
        with open(f"{settings.root}/{_LOG}", "a") as log:
            steps = _Steps(sys.stdout, log)
            child.tell([dataclasses.asdict(settings), *flags_of_steps])
            try:
                for line in child.lines:
                    steps.write(line)
            except KeyboardInterrupt:
                _let_steps_end(child, steps)
                raise
    finally:
        status = child.end()
    if signal_of(status) is not None:
        lost = f"the step {steps.step}" if steps.step else "the process of kfp"
        raise WorkerLostError(
            f"{lost} {how_it_ended(status)}: repeat the command, which continues there; all that kfp "
            f"says is in {settings.root}/{_LOG}"
        )
    if status:
        print(f"components.pipeline: a step failed, see above. All that kfp says: {settings.root}/{_LOG}", file=sys.stderr)
        return status
    print(f"Artifacts: {settings.root}")
    return 0


def _let_steps_end(child: ChildGroup, steps: _Steps) -> None:
    """Lets the steps end by SIGTERM within a time of grace, in which a training saves its state. Another signal ends them at once."""
    ended = threading.Thread(target=lambda: [steps.write(line) for line in child.lines], daemon=True)
    child.terminate()
    ended.start()
    ended.join(_GRACE_SECONDS)


class _Steps(io.TextIOBase):
    """A stream that shows the lines of the steps, under their names, out of all that kfp writes; everything goes into the log."""

    def __init__(self, terminal: TextIO, log: TextIO):
        self._terminal, self._log = terminal, log
        self._line, self._is_step = "", False
        self.step = ""
        """The step that began last."""

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
            self.step = started[1]
            self._tell(f"\n== {self.step}")
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
    settings=(PipelineSettings, *STEP_SETTINGS),
    work=_work,
    define=_define,
    read=_read,
    stopped="; the same command continues",
)

if __name__ == "__main__":
    sys.exit(main())
