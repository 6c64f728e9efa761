"""The process in which Kubeflow Pipelines (kfp) runs a pipeline on this machine, each step in a process of its own.

It is told the arguments of `make_pipeline`, prints what kfp prints, and ends with the status of the step that failed.
"""

from __future__ import annotations

import io
import signal
import sys
import threading
import traceback
import typing
import warnings

from sela_tf.tasks.child_group import end_with_parent, messages


def main() -> int:
    """Runs a pipeline, and returns the status of its last step: 0 if all have done their work."""
    end_with_parent()
    stopped = threading.Event()
    # The step that runs gets the signal, too, saves what it has, and ends; until then somebody has to read what it says.
    signal.signal(signal.SIGTERM, lambda number, frame: stopped.set())
    # The parent reads the lines as they come.
    typing.cast(io.TextIOWrapper, sys.stdout).reconfigure(line_buffering=True)
    settings, *flags_of_steps = next(messages())

    from kfp import local
    from kfp.local import subprocess_task_handler

    from components.kfp_steps import make_pipeline
    from components.settings import PipelineSettings

    run, statuses = subprocess_task_handler.run_local_subprocess, [0]

    def run_step(full_command: list[str]) -> int:
        # kfp itself says only that a step has failed.
        statuses.append(128 + signal.SIGTERM if stopped.is_set() else run(full_command))
        return statuses[-1]

    subprocess_task_handler.run_local_subprocess = run_step
    # It is about the image of the steps, which is for a cluster.
    warnings.filterwarnings("ignore", message="You may be attemp", category=RuntimeWarning)
    pipeline_settings = PipelineSettings(**settings)
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=f"{pipeline_settings.root}/kfp", raise_on_error=True)
    try:
        make_pipeline(pipeline_settings, *flags_of_steps)()
    except RuntimeError:
        traceback.print_exc(file=sys.stdout)
        status = statuses[-1] or 1
        return status if status > 0 else 128 - status
    return 0


if __name__ == "__main__":
    sys.exit(main())
