"""The TFX component LinearProbe, over `components.linear_probe.executor`."""

# TFX reads the annotations of a component as types, so this module does not postpone them.

from typing import Any

from components.flag_lines import arguments
from components.linear_probe.__main__ import main
from components.tfx_artifacts import tfx

_types = tfx.types.standard_artifacts


@tfx.dsl.components.component
def _linear_probe(
    examples: tfx.dsl.components.InputArtifact[_types.Examples],
    model: tfx.dsl.components.InputArtifact[_types.Model],
    evaluation: tfx.dsl.components.OutputArtifact[_types.ModelEvaluation],
    blessing: tfx.dsl.components.OutputArtifact[_types.ModelBlessing],
    baseline: tfx.dsl.components.InputArtifact[_types.Model] = None,
    settings: tfx.dsl.components.Parameter[str] = "",
) -> None:
    """Evaluates a model and says whether it is good enough."""
    from components.linear_probe.executor import evaluate

    inputs = {"examples": examples.uri, "model": model.uri, "baseline": baseline.uri if baseline else ""}
    found = evaluate(*arguments(main, settings, **inputs, evaluation=evaluation.uri, blessing=blessing.uri))
    # What TFX's Evaluator says, and its Pusher and its resolver of the latest blessed model read.
    blessing.set_int_custom_property("blessed", int(found["blessed"]))
    blessing.set_string_custom_property("current_model", model.uri)
    blessing.set_int_custom_property("current_model_id", model.id)
    for name, value in found["model"]["figures"].items():
        evaluation.set_float_custom_property(name, value)


class LinearProbe(_linear_probe):
    """The TFX component that probes a model and blesses it or not, as `python -m components.linear_probe` does.

    Its outputs are `evaluation` (ModelEvaluation) and `blessing` (ModelBlessing, which TFX's own Pusher takes).

    Args:
        examples: The channel of Examples that DataIngestion wrote, with class labels.
        model: The channel of the Model that SelfLabelling wrote.
        baseline: A channel of another Model of SelfLabelling, such as that of a Resolver with LatestBlessedModelStrategy; where it is
            empty, there is no baseline.
        settings: Flags of the command in one line, as in a shell: --min_knn, --min_linear_probe, --min_nmi, --max_drop and those of the
            probes.

    Raises:
        ConfigError: A setting cannot be used.
    """

    def __init__(self, *, examples: Any, model: Any, baseline: Any = None, settings: str = ""):
        arguments(main, settings, **{name: f"-{name}" for name in ("examples", "model", "evaluation", "blessing")})
        given = {} if baseline is None else {"baseline": baseline}
        super().__init__(examples=examples, model=model, settings=settings, **given)
