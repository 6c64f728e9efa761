"""The pipeline of Apache Beam that hands tasks to workers. It runs without TensorFlow, which the workers load."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence
from typing import Any


def check_arguments(arguments: Sequence[str]) -> str:
    """Returns the reason why Beam refuses the options; "" if it takes them."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            _pipeline(arguments)
    except (SystemExit, ValueError) as error:  # Beam parses options as a command does, and exits.
        return said.getvalue().strip().rpartition("error: ")[2] or str(error)
    return ""


def run_pipeline(arguments: Sequence[str], num_tasks: int, place: str, function: str) -> None:
    """Runs tasks on Beam's workers.

    Args:
        arguments: Options of Beam.
        num_tasks: Number of tasks.
        place: The directory of tasks and results.
        function: MODULE:NAME of the function that does a task.
    """
    import apache_beam as beam

    with _pipeline(arguments) as pipeline:
        _ = pipeline | beam.Create(range(num_tasks)) | beam.Reshuffle() | beam.Map(_run_task, place, function)


def _run_task(number: int, place: str, function: str) -> None:
    from sela_tf.tasks.task_files import run_task

    run_task(number, place, function)


def _pipeline(arguments: Sequence[str]) -> Any:
    import apache_beam as beam
    from apache_beam.options.pipeline_options import PipelineOptions

    options = PipelineOptions(list(arguments))
    options.get_all_options()
    return beam.Pipeline(options=options)
