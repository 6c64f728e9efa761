"""The evaluation of one network, for tests."""

from __future__ import annotations

from typing import Any

import keras

from sela_tf.data.augment import Augmentation
from sela_tf.evaluation.judging import Judging
from sela_tf.evaluation.protocol import EvaluationImages
from sela_tf.models.heads import find_multi_head


def evaluated(model: keras.Model, images: EvaluationImages, *, fill_statistics: bool = False) -> dict[str, Any]:
    """Returns the figures of a network, as an evaluation of several networks takes them."""
    num_clusters = find_multi_head(model).num_clusters
    judging = Judging(images, augmentation=Augmentation(), num_clusters=num_clusters, seed=0)
    return judging.network(model, fill_statistics=fill_statistics).figures
