"""Warnings that older releases of TensorFlow and Keras give by themselves."""

from __future__ import annotations

import importlib.metadata

# Keras is not imported: the process that only hands out tests needs none.
IS_KERAS_3 = not importlib.metadata.version("keras").startswith("2.")

WARNINGS_OF_KERAS_2 = [
    # Keras 2.15 draws the seed of an initialiser by `random.randint(1, 1e9)`.
    "ignore:non-integer arguments to randrange\\(\\):DeprecationWarning",
]
"""Warnings that Keras 2.15 and TensorFlow 2.15 give by themselves, each with its reason."""
