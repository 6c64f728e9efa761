"""The door of TFX: ingestion, self-labelling, linear probe and TFX's own Pusher, run on this machine by TFX's LocalDagRunner.

python -m components.pipeline_tfx --flagfile=configs/digits.cfg --root=runs/pipeline_tfx --min_knn=0.95
"""

from __future__ import annotations

import dataclasses
import importlib
import os
import pathlib
import sys
from typing import Any, NamedTuple

from absl import flags as absl_flags
from absl import logging

from components.settings import missing_package
from components.step_flags import STEP_SETTINGS, StepFlags, define_step_flags, step_flags
from sela_tf.cli import flags
from sela_tf.cli.command import Command
from sela_tf.settings.fields import ConfigError, option
from sela_tf.settings.paths import absolute_path, refuse_unwritable

_USAGE = """python -m components.pipeline_tfx --flagfile=configs/NAME.cfg --root=DIR [--min_knn=SHARE …] [--setting=value …]

Ingests --dataset, trains on it, probes the model, and pushes it to DIR/serving if it is good enough, by TFX on this machine. Flags:
"""
NAME = "sela-tf"
METADATA, SERVING, SCRATCH = "metadata.sqlite", "serving", "scratch"
"""Names below the root: TFX's metadata store, the models that were pushed, and trainings, which continue there if they were stopped."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TfxPipelineSettings:
    """The settings of `python -m components.pipeline_tfx`, without those of the steps."""

    root: str = option(
        "", "Directory of TFX's artifacts, its metadata store and the pushed models; unchanged steps are not repeated."
    )

    def __post_init__(self) -> None:
        if not self.root:
            raise ConfigError("`root` is missing: a directory")
        object.__setattr__(self, "root", absolute_path(self.root))
        refuse_unwritable("root", pathlib.Path(self.root))


def create_pipeline(root: str, steps: StepFlags) -> Any:
    """Returns the pipeline, `tfx.dsl.Pipeline`, for a runner of TFX.

    Args:
        root: The absolute path of the directory of everything that it writes.
        steps: The flags of each step.

    Raises:
        ConfigError: A setting cannot be used.
        SourceError: The images are not there.
    """
    from components.data_ingestion.component import DataIngestion
    from components.linear_probe.component import LinearProbe
    from components.self_labelling.component import SelfLabelling
    from components.tfx_artifacts import tfx

    ingestion = DataIngestion(settings=steps.ingestion)
    examples = ingestion.outputs["examples"]
    training = SelfLabelling(examples=examples, settings=steps.training, scratch=f"{root}/{SCRATCH}")
    model = training.outputs["model"]
    probing = LinearProbe(examples=examples, model=model, settings=steps.probing)
    place = tfx.proto.PushDestination(filesystem=tfx.proto.PushDestination.Filesystem(base_directory=f"{root}/{SERVING}"))
    pusher = tfx.components.Pusher(model=model, model_blessing=probing.outputs["blessing"], push_destination=place)
    return tfx.dsl.Pipeline(
        pipeline_name=NAME,
        pipeline_root=f"{root}/artifacts",
        components=[ingestion, training, probing, pusher],
        metadata_connection_config=tfx.orchestration.metadata.sqlite_metadata_connection_config(f"{root}/{METADATA}"),
        enable_cache=True,
    )


def _define(values: absl_flags.FlagValues) -> None:
    flags.define(values, TfxPipelineSettings)
    define_step_flags(values)


def _read(values: absl_flags.FlagValues) -> tuple[TfxPipelineSettings, StepFlags]:
    if importlib.util.find_spec("tfx") is None:
        raise missing_package("this pipeline needs TFX, and TFX glibc 2.38 (Debian 13, Ubuntu 24.04)", "tfx")
    return flags.settings(values, TfxPipelineSettings), step_flags(values)


def _work(settings: TfxPipelineSettings, steps: StepFlags) -> int:
    from components.linear_probe.executor import NOT_BLESSED
    from components.tfx_artifacts import tfx

    os.makedirs(settings.root, exist_ok=True)
    # TFX warns of what its metadata store lacks here, in every step.
    logging.set_verbosity(logging.ERROR)
    tfx.orchestration.LocalDagRunner().run(create_pipeline(settings.root, steps))
    for step in last_run(settings.root):
        print(f"{step.name}: {'unchanged, from the cache' if step.is_cached else 'done'}: {', '.join(step.outputs)}")
        if any(os.path.exists(f"{output}/{NOT_BLESSED}") for output in step.outputs):
            print("The model is not blessed, and not pushed: evaluation.md there says why")
    return 0


class Step(NamedTuple):
    """A step of a run, as TFX's metadata store has it."""

    name: str
    """The name of the component."""
    is_cached: bool
    """True if an earlier run had done it already."""
    outputs: list[str]
    """The directories of its artifacts."""


def last_run(root: str) -> list[Step]:
    """Returns the steps that the last run of the pipeline below `root` has finished, in their order."""
    from ml_metadata import metadata_store
    from ml_metadata.proto import metadata_store_pb2 as mlmd

    connection = mlmd.ConnectionConfig()
    connection.sqlite.filename_uri = f"{root}/{METADATA}"
    store = metadata_store.MetadataStore(connection)
    run = max(store.get_contexts_by_type("pipeline_run"), key=lambda context: context.create_time_since_epoch)
    steps = []
    for execution in sorted(store.get_executions_by_context(run.id), key=lambda each: each.id):
        if execution.last_known_state not in (mlmd.Execution.COMPLETE, mlmd.Execution.CACHED):
            continue
        (node,) = (context.name for context in store.get_contexts_by_execution(execution.id) if context.type == "node")
        events = store.get_events_by_execution_ids([execution.id])
        artifacts = store.get_artifacts_by_id([event.artifact_id for event in events if event.type == mlmd.Event.OUTPUT])
        name = node.removeprefix(f"{NAME}.")
        steps.append(Step(name, execution.last_known_state == mlmd.Execution.CACHED, [each.uri for each in artifacts]))
    return steps


main = Command(
    name="components.pipeline_tfx",
    usage=_USAGE,
    settings=(TfxPipelineSettings, *STEP_SETTINGS),
    work=_work,
    define=_define,
    read=_read,
    stopped="; the same command continues",
)

if __name__ == "__main__":
    sys.exit(main())
