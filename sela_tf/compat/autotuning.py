"""A data set option that lets a pass end as soon as its last batch has come."""

from __future__ import annotations

import tensorflow as tf


def untuned(batches: tf.data.Dataset) -> tf.data.Dataset:
    """Returns `batches` without tf.data's autotuning, unless its options ask for autotuning.

    The tuning thread wakes up after .01 s, and then after twice as long each time. When an iterator is deleted, TensorFlow 2.21 wakes the
    thread before it marks the iterator as deleted: the thread mostly goes back to sleep, and the deletion waits until it wakes up, so that a
    pass takes up to twice as long as its work. Without autotuning, AUTOTUNE means as many parallel calls as there are threads.
    """
    if batches.options().autotune.enabled is not None:
        return batches
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)
