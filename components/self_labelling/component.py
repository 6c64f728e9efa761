"""The TFX component SelfLabelling, over `components.self_labelling.executor`."""

# TFX reads the annotations of a component as types, so this module does not postpone them.

import hashlib
import pathlib
import shutil
from typing import Any

from components.flag_lines import arguments
from components.reports import mean_figures
from components.self_labelling.__main__ import main
from components.tfx_artifacts import Labels, tfx

_types = tfx.types.standard_artifacts


@tfx.dsl.components.component
def _self_labelling(
    examples: tfx.dsl.components.InputArtifact[_types.Examples],
    model: tfx.dsl.components.OutputArtifact[_types.Model],
    labels: tfx.dsl.components.OutputArtifact[Labels],
    metrics: tfx.dsl.components.OutputArtifact[_types.ModelRun],
    settings: tfx.dsl.components.Parameter[str] = "",
    scratch: tfx.dsl.components.Parameter[str] = "",
) -> None:
    """Trains a model; `scratch` is where a training that was stopped is found again."""
    from components.self_labelling.executor import self_label
    from sela_tf.data.records import read_manifest

    if scratch:
        digest = read_manifest(examples.uri, name=examples.uri)["digest"]
        scratch = f"{scratch}/{hashlib.sha256(f'{settings} {digest}'.encode()).hexdigest()[:12]}"
    places = {"examples": examples.uri, "model": model.uri, "labels": labels.uri, "metrics": metrics.uri}
    results = self_label(*arguments(main, settings, **places, scratch=scratch))
    if scratch:
        shutil.rmtree(scratch, ignore_errors=True)  # the model has a copy of all of it
    for name, value in mean_figures(results.get("trained", {})).items():
        metrics.set_float_custom_property(name, value)


class SelfLabelling(_self_labelling):
    """The TFX component that trains a network on Examples, as `python -m components.self_labelling` does.

    Its outputs are `model` (Model, whose Format-Serving TFX's own Pusher and BulkInferrer take), `labels` (Labels) and `metrics` (ModelRun).

    Args:
        examples: The channel of Examples that DataIngestion wrote.
        settings: Flags of the command in one line, as in a shell; those of its artifacts are left out.
        scratch: A directory in which the training runs. TFX gives each execution a new directory, so a training that was stopped continues
            only with this one; without it, it begins anew.

    Raises:
        ConfigError: A setting cannot be used.
    """

    def __init__(self, *, examples: Any, settings: str = "", scratch: str = ""):
        arguments(main, settings, **{name: f"-{name}" for name in ("examples", "model", "labels", "metrics")})
        super().__init__(examples=examples, settings=settings, scratch=scratch and str(pathlib.Path(scratch).absolute()))
