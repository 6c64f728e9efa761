"""A pass over a data set that ends when its last batch is there."""

from __future__ import annotations

import tensorflow as tf


def untuned(batches: tf.data.Dataset) -> tf.data.Dataset:
    """`batches` without tf.data's autotuning, unless its options ask for that.

    The thread that tunes looks after .01 s, and from then on each time after twice as long. TensorFlow 2.21 wakes it when an iterator is
    given up, but only then notes that it was: mostly the thread goes back to sleep, and the iterator waits for its next look, so that a
    pass takes up to twice as long as its work. What is to be tuned (AUTOTUNE) is then as parallel as there are threads.
    """
    if batches.options().autotune.enabled is not None:
        return batches
    options = tf.data.Options()
    options.autotune.enabled = False
    return batches.with_options(options)
