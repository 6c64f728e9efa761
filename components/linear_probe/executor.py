"""Evaluation: `evaluate(settings, probe)` makes the artifacts ModelEvaluation and ModelBlessing of a Model and Examples."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from components import artifacts
from components.settings import RUN, LinearProbeSettings, probe_config
from sela_tf.commands.probe import probe as probe_network
from sela_tf.commands.probe import probes_table
from sela_tf.data.records import read_manifest
from sela_tf.data.sources.records import load_records
from sela_tf.files.atomic import write_whole
from sela_tf.settings.commands import ProbeConfig
from sela_tf.settings.fields import ConfigError

_NAME = "linear_probe"
EVALUATION, REPORT = "evaluation.json", "evaluation.md"
BLESSED, NOT_BLESSED = "BLESSED", "NOT_BLESSED"
"""As TFX names them, empty files."""


def evaluate(settings: LinearProbeSettings, probe: ProbeConfig) -> dict[str, Any]:
    """Probes the model, holds it against thresholds and a baseline, and writes what the settings name.

    Args:
        settings: directories, thresholds, baseline.
        probe: how to probe; whose run and which images are replaced by model and examples.

    Returns:
        What evaluation.json holds. If the directories hold what the same model and examples made, nothing is done.

    Raises:
        ValueError: model or examples will not do, or have no class labels (ConfigError, SourceError).
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
    if load_records(settings.examples, name=probe.dataset, memory_limit=0).train.classes is None:
        raise ConfigError(f"--examples={settings.examples} has no class labels, which probes need: name others")
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
    # only now: an earlier verdict stands until there is another
    for name, path in outputs.items():
        artifacts.start(str(path), name, _NAME, clear=(BLESSED, NOT_BLESSED))
    write_whole(evaluation / EVALUATION, json.dumps(found, indent=1) + "\n")
    write_whole(evaluation / REPORT, markdown_report(found))
    (blessing / (NOT_BLESSED if reasons else BLESSED)).touch()
    for path in (evaluation, blessing):
        artifacts.finish(str(path), made_of)
    return found


def headline(figures: Mapping[str, Any]) -> dict[str, float]:
    """What verdicts are about: kNN with the first k, the linear probe of the last stage (the embedding, by default), NMI."""
    return {
        "knn": next(iter(figures["knn"].values())),
        "linear_probe": list(figures["linear_probe"].values())[-1],
        "nmi": float(np.mean(figures["clustering"]["nmi"])),
    }


def objections(model: Mapping[str, float], baseline: Mapping[str, float] | None, settings: LinearProbeSettings) -> list[str]:
    """Why the model is not to be blessed; none if it is. Without a threshold or a baseline nothing speaks for it."""
    thresholds = {name: getattr(settings, f"min_{name}") for name in model}
    if baseline is None and not any(thresholds.values()):
        return ["neither a threshold nor a baseline was given"]
    reasons = [f"{name} {model[name]:.4f} is below {least:g}" for name, least in thresholds.items() if model[name] < least]
    for name, value in (baseline or {}).items():
        if model[name] < value - settings.max_drop:
            reasons.append(f"{name} {model[name]:.4f} is more than {settings.max_drop:g} below the baseline's {value:.4f}")
    return reasons


def markdown_report(found: Mapping[str, Any]) -> str:
    """For people."""
    lines = ["# Evaluation", "", f"**{'Blessed' if found['blessed'] else 'Not blessed'}**", ""]
    lines += [f"- {reason}" for reason in found["reasons"]] + [""] * bool(found["reasons"])
    for name in ("model", "baseline"):
        if name in found:
            lines += [f"## {name.capitalize()}", "", probes_table([found[name]]), ""]
    return "\n".join([*lines, found["model"]["protocol"], ""])


def _fingerprint_of(model: str, flag: str) -> str:
    made_of = artifacts.read_made_of(model)
    if made_of is None or made_of.get("component") != "self_labelling":
        raise ConfigError(
            f"--{flag}={model} holds no finished model: components.self_labelling writes one, or was stopped before it was done"
        )
    return str(made_of["fingerprint"])
