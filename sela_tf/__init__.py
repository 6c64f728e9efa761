"""SeLa for TensorFlow: self-labelling by simultaneous clustering and representation learning (arXiv 1911.05371).

The names below are loaded when they are first used, so that `python -m sela_tf.train` can refuse a misspelt flag before TensorFlow
is loaded, and silence what TensorFlow says on loading. Classes that `keras.models.load_model` may meet in a file are registered as soon as
Keras is loaded, by whomever.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from sela_tf.compat.keras_registration import other_backend, register_with_keras

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sela_tf.callbacks.doctor import CollapseDoctor, Finding
    from sela_tf.callbacks.monitors import ClusterMonitor, KNNMonitor
    from sela_tf.clustering.balanced_kmeans import BalancedKMeans
    from sela_tf.commands.convert import convert_folder
    from sela_tf.commands.export import export_run
    from sela_tf.commands.label import label_run
    from sela_tf.commands.probe import probe_run
    from sela_tf.commands.report import report_run
    from sela_tf.data.errors import SourceError
    from sela_tf.models.backbones import BACKBONES
    from sela_tf.models.build import build_model
    from sela_tf.models.heads import MultiHead
    from sela_tf.runs.network import load_run
    from sela_tf.self_labelling.callback import SelfLabelling
    from sela_tf.self_labelling.fit_checkpoint import Checkpoint
    from sela_tf.self_labelling.label_pass import head_log_probs
    from sela_tf.self_labelling.label_table import LabelTable
    from sela_tf.self_labelling.loss import SelfLabelLoss
    from sela_tf.self_labelling.schedule import relabel_steps
    from sela_tf.serving.saved_model import export_saved_model
    from sela_tf.settings.commands import ConvertConfig, ExportConfig, LabelConfig, ProbeConfig, ReportConfig
    from sela_tf.settings.fields import ConfigError
    from sela_tf.settings.training import SelaConfig
    from sela_tf.training.loop import TrainingInterrupted
    from sela_tf.training.run import run
    from sela_tf.transport.assignment import Assignment, assign_labels
    from sela_tf.transport.linear_logits import LinearLogits
    from sela_tf.transport.rounding import BalancedLabels, balanced_labels
    from sela_tf.transport.sinkhorn import SinkhornResult, sinkhorn
    from sela_tf.transport.sinkhorn_op import SinkhornOpResult, sinkhorn_op

_HOMES = {
    "Assignment": "transport.assignment",
    "BACKBONES": "models.backbones",
    "BalancedKMeans": "clustering.balanced_kmeans",
    "BalancedLabels": "transport.rounding",
    "Checkpoint": "self_labelling.fit_checkpoint",
    "ClusterMonitor": "callbacks.monitors",
    "CollapseDoctor": "callbacks.doctor",
    "ConfigError": "settings.fields",
    "ConvertConfig": "settings.commands",
    "ExportConfig": "settings.commands",
    "Finding": "callbacks.doctor",
    "KNNMonitor": "callbacks.monitors",
    "LabelConfig": "settings.commands",
    "LabelTable": "self_labelling.label_table",
    "LinearLogits": "transport.linear_logits",
    "MultiHead": "models.heads",
    "ProbeConfig": "settings.commands",
    "ReportConfig": "settings.commands",
    "SelaConfig": "settings.training",
    "SelfLabelLoss": "self_labelling.loss",
    "SelfLabelling": "self_labelling.callback",
    "SinkhornOpResult": "transport.sinkhorn_op",
    "SinkhornResult": "transport.sinkhorn",
    "SourceError": "data.errors",
    "TrainingInterrupted": "training.loop",
    "assign_labels": "transport.assignment",
    "balanced_labels": "transport.rounding",
    "build_model": "models.build",
    "convert_folder": "commands.convert",
    "export_run": "commands.export",
    "export_saved_model": "serving.saved_model",
    "head_log_probs": "self_labelling.label_pass",
    "label_run": "commands.label",
    "load_run": "runs.network",
    "probe_run": "commands.probe",
    "relabel_steps": "self_labelling.schedule",
    "report_run": "commands.report",
    "run": "training.run",
    "sinkhorn": "transport.sinkhorn",
    "sinkhorn_op": "transport.sinkhorn_op",
}

_WITHOUT_KERAS = ("clustering.", "settings.", "data.", "transport.", "self_labelling.label_table", "self_labelling.schedule")

__all__ = [
    "BACKBONES",
    "Assignment",
    "BalancedKMeans",
    "BalancedLabels",
    "Checkpoint",
    "ClusterMonitor",
    "CollapseDoctor",
    "ConfigError",
    "ConvertConfig",
    "ExportConfig",
    "Finding",
    "KNNMonitor",
    "LabelConfig",
    "LabelTable",
    "LinearLogits",
    "MultiHead",
    "ProbeConfig",
    "ReportConfig",
    "SelaConfig",
    "SelfLabelLoss",
    "SelfLabelling",
    "SinkhornOpResult",
    "SinkhornResult",
    "SourceError",
    "TrainingInterrupted",
    "__version__",
    "assign_labels",
    "balanced_labels",
    "build_model",
    "convert_folder",
    "export_run",
    "export_saved_model",
    "head_log_probs",
    "label_run",
    "load_run",
    "probe_run",
    "relabel_steps",
    "report_run",
    "run",
    "sinkhorn",
    "sinkhorn_op",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    wrong = other_backend()
    if wrong is not None and not _HOMES[name].startswith(_WITHOUT_KERAS):
        raise ImportError(f"sela_tf.{name}: {wrong}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


register_with_keras()
