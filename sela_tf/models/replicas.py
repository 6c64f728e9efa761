"""Values of variables on every replica, as arrays of a save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from sela_tf.compat.releases import of_each_replica


def replica_arrays(name: str, variable: Any, strategy: tf.distribute.Strategy) -> dict[str, np.ndarray]:
    """Returns the value of a variable as an array of this name, and those of further replicas as `NAME/1`, … where they are not the same.

    Each replica has its own statistics of batch normalisation, for one, unless they are synchronised.
    """
    first, *others = (each.numpy() for each in of_each_replica(variable, strategy))
    return {name: first, **{f"{name}/{i}": each for i, each in enumerate(others, 1) if each.tobytes() != first.tobytes()}}


def put_back(name: str, variable: Any, strategy: tf.distribute.Strategy, arrays: Mapping[str, np.ndarray]) -> None:
    """Gives every replica of a variable its value among `arrays`, which `replica_arrays` made."""
    for i, replica in enumerate(of_each_replica(variable, strategy)):
        values = arrays.get(f"{name}/{i}", arrays[name])
        # NumPy's files keep only the size of types that it does not know, such as bfloat16.
        replica.assign(values.view(tf.as_dtype(replica.dtype).as_numpy_dtype) if values.dtype.kind == "V" else values)
