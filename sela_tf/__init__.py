"""SeLa for TensorFlow: self-labelling by simultaneous clustering and representation learning (arXiv 1911.05371).

The names below are loaded when they are first used, so that `python -m sela_tf.train` can refuse a misspelt flag before TensorFlow
is loaded, and silence what TensorFlow says on loading.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from sela_tf.config import SelaConfig
    from sela_tf.evaluation.doctor import CollapseDoctor, Finding
    from sela_tf.evaluation.monitors import ClusterMonitor, KNNMonitor
    from sela_tf.models import BACKBONES, build_model
    from sela_tf.models.heads import MultiHead
    from sela_tf.network import load_run
    from sela_tf.self_labelling.callback import SelfLabelling
    from sela_tf.self_labelling.label_pass import head_log_probs
    from sela_tf.self_labelling.label_table import LabelTable
    from sela_tf.self_labelling.loss import SelfLabelLoss
    from sela_tf.self_labelling.schedule import relabel_steps
    from sela_tf.serving.saved_model import export_saved_model
    from sela_tf.trainer import run
    from sela_tf.transport.assignment import Assignment, assign_labels
    from sela_tf.transport.linear_logits import LinearLogits
    from sela_tf.transport.rounding import BalancedLabels, balanced_labels
    from sela_tf.transport.sinkhorn import SinkhornResult, sinkhorn

_HOMES = {
    "Assignment": "transport.assignment",
    "BACKBONES": "models",
    "BalancedLabels": "transport.rounding",
    "ClusterMonitor": "evaluation.monitors",
    "CollapseDoctor": "evaluation.doctor",
    "Finding": "evaluation.doctor",
    "KNNMonitor": "evaluation.monitors",
    "LabelTable": "self_labelling.label_table",
    "LinearLogits": "transport.linear_logits",
    "MultiHead": "models.heads",
    "SelaConfig": "config",
    "SelfLabelLoss": "self_labelling.loss",
    "SelfLabelling": "self_labelling.callback",
    "SinkhornResult": "transport.sinkhorn",
    "assign_labels": "transport.assignment",
    "balanced_labels": "transport.rounding",
    "build_model": "models",
    "export_saved_model": "serving.saved_model",
    "head_log_probs": "self_labelling.label_pass",
    "load_run": "network",
    "relabel_steps": "self_labelling.schedule",
    "run": "trainer",
    "sinkhorn": "transport.sinkhorn",
}

__all__ = [
    "BACKBONES",
    "Assignment",
    "BalancedLabels",
    "ClusterMonitor",
    "CollapseDoctor",
    "Finding",
    "KNNMonitor",
    "LabelTable",
    "LinearLogits",
    "MultiHead",
    "SelaConfig",
    "SelfLabelLoss",
    "SelfLabelling",
    "SinkhornResult",
    "__version__",
    "assign_labels",
    "balanced_labels",
    "build_model",
    "export_saved_model",
    "head_log_probs",
    "load_run",
    "relabel_steps",
    "run",
    "sinkhorn",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
