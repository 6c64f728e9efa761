"""TFX itself, where it can be imported, and the type of the artifact that it lacks."""

from __future__ import annotations

import importlib.util

if importlib.util.find_spec("tfx") is None:
    raise ModuleNotFoundError(
        "components in TFX need tfx: pip install 'sela-tf[tfx]' (on Debian 13, Ubuntu 24.04, or another Linux with glibc 2.38); "
        "`python -m components.pipeline` runs the same executors without it",
        name="tfx",
    )

from tfx import v1 as tfx


class Labels(tfx.dsl.Artifact):
    """The artifact with labels.parquet: the clusters of the training images, see `components.self_labelling.executor`."""

    TYPE_NAME = "SelaLabels"


__all__ = ["Labels", "tfx"]
