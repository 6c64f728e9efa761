"""Evaluation: `evaluate(settings, probe)` writes the artifacts ModelEvaluation and ModelBlessing for a Model and Examples."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from components import artifacts
from components.settings import RUN, LinearProbeSettings, probe_config
from sela_tf.commands.probe import probe as probe_network
from sela_tf.data.image_set import SourceName
from sela_tf.data.records import read_manifest
from sela_tf.data.sources.records import load_records
from sela_tf.files.atomic import write_whole
from sela_tf.reporting.probe_tables import probes_table
from sela_tf.settings.commands import ProbeConfig
from sela_tf.settings.fields import ConfigError

_NAME = "linear_probe"
EVALUATION, REPORT = "evaluation.json", "evaluation.md"
BLESSED, NOT_BLESSED = "BLESSED", "NOT_BLESSED"
"""Names of the empty file that holds the verdict, as TFX names them."""


def evaluate(settings: LinearProbeSettings, probe: ProbeConfig) -> dict[str, Any]:
    """Probes a model, compares its figures with thresholds and a baseline, and writes the evaluation and the verdict.

    Nothing is done if the directories already hold the evaluation of the same model and examples.

    Args:
        settings: Directories, thresholds and the baseline.
        probe: The settings of the probes. Their run and data set are replaced by the model and the examples.

    Returns:
        The content of evaluation.json.

    Raises:
        ConfigError: The model cannot be used, or the examples have no class labels.
        SourceError: The examples cannot be used.
    """
    probe = probe_config(probe, settings.model, settings.examples)
    manifest = read_manifest(settings.examples, name=probe.dataset)
    models = {"model": settings.model, **({"baseline": settings.baseline} if settings.baseline else {})}
    own = ("examples", "model", "evaluation", "blessing", "baseline")
    made_of = {
        "component": _NAME,
        "examples": manifest["digest"],
        "settings": {name: value for name, value in vars(settings).items() if name not in own},
        "probe": {name: value for name, value in vars(probe).items() if name not in ("workdir", "dataset", "cache_dir")},
        **{name: _fingerprint_of(path, name) for name, path in models.items()},
    }
    evaluation, blessing = pathlib.Path(settings.evaluation), pathlib.Path(settings.blessing)
    if all(artifacts.is_current(str(path), made_of) for path in (evaluation, blessing)):
        print(f"unchanged since it was evaluated: {evaluation}", flush=True)
        return json.loads((evaluation / EVALUATION).read_text())
    outputs = {"evaluation": evaluation, "blessing": blessing}
    for name, path in outputs.items():
        artifacts.refuse_foreign(str(path), name, _NAME)
    if load_records(settings.examples, source=SourceName(probe.dataset), memory_limit=0).train.classes is None:
        raise ConfigError(f"`examples={settings.examples}` has no class labels, which probes need: name others")
    probed = {name: probe_network(probe_config(probe, path, settings.examples), f"{path}/{RUN}") for name, path in models.items()}
    figures = {name: headline(found["trained"]) for name, found in probed.items()}
    reasons = objections(figures["model"], figures.get("baseline"), settings)
    found = {
        "blessed": not reasons,
        "reasons": reasons,
        **{name: {"figures": figures[name], **probed[name]} for name in probed},
        "thresholds": {name: getattr(settings, f"min_{name}") for name in figures["model"]},
        "max_drop": settings.max_drop,
        "examples": manifest["digest"],
    }
    # The old verdict is removed only now, when there is a new one.
    for name, path in outputs.items():
        artifacts.start(str(path), name, _NAME, clear=(BLESSED, NOT_BLESSED))
    write_whole(evaluation / EVALUATION, json.dumps(found, indent=1) + "\n")
    write_whole(evaluation / REPORT, markdown_report(found))
    (blessing / (NOT_BLESSED if reasons else BLESSED)).touch()
    for path in (evaluation, blessing):
        artifacts.finish(str(path), made_of)
    return found


def headline(figures: Mapping[str, Any]) -> dict[str, float]:
    """Returns the three figures of a verdict: kNN accuracy with the first k, accuracy of the linear probe on the last stage (by default the
    embedding), and NMI as the mean of the heads."""
    return {
        "knn": next(iter(figures["knn"].values())),
        "linear_probe": list(figures["linear_probe"].values())[-1],
        "nmi": float(np.mean(figures["clustering"]["nmi"])),
    }


def objections(model: Mapping[str, float], baseline: Mapping[str, float] | None, settings: LinearProbeSettings) -> list[str]:
    """Returns the reasons against blessing a model; none if it is blessed.

    Args:
        model: The figures of the model, see `headline`.
        baseline: The figures of the baseline; None without one.
        settings: Thresholds and the largest drop. Without a threshold and a baseline, no model is blessed.
    """
    thresholds = {name: getattr(settings, f"min_{name}") for name in model}
    if baseline is None and not any(thresholds.values()):
        return ["neither a threshold nor a baseline was given"]
    reasons = [f"{name} {model[name]:.4f} is below {least:g}" for name, least in thresholds.items() if model[name] < least]
    for name, value in (baseline or {}).items():
        if model[name] < value - settings.max_drop:
            reasons.append(f"{name} {model[name]:.4f} is more than {settings.max_drop:g} below the baseline's {value:.4f}")
    return reasons


def markdown_report(found: Mapping[str, Any]) -> str:
    """Returns evaluation.json in readable form, as Markdown."""
    lines = ["# Evaluation", "", f"**{'Blessed' if found['blessed'] else 'Not blessed'}**", ""]
    lines += [f"- {reason}" for reason in found["reasons"]] + [""] * bool(found["reasons"])
    for name in ("model", "baseline"):
        if name in found:
            lines += [f"## {name.capitalize()}", "", probes_table([found[name]]), ""]
    return "\n".join([*lines, found["model"]["protocol"], ""])


def _fingerprint_of(model: str, setting: str) -> str:
    """Returns the fingerprint of a model's inputs; `setting` names the model in messages.

    Raises:
        ConfigError: The directory holds no finished model.
    """
    made_of = artifacts.read_made_of(model)
    if made_of is None or made_of.get("component") != "self_labelling":
        raise ConfigError(
            f"`{setting}={model}` holds no finished model: components.self_labelling writes one, or was stopped before it was done"
        )
    return str(made_of["fingerprint"])
