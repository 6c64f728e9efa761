"""Values of variables on every replica, as arrays of a save."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf

from sela_tf.compat.releases import of_each_replica


def replica_values(variable: Any, strategy: tf.distribute.Strategy) -> np.ndarray:
    """Returns the values of a variable on the R replicas of this process, [R, …]."""
    return np.stack([each.numpy() for each in of_each_replica(variable, strategy)])


def replica_arrays(name: str, values: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the first of the values of a variable as an array of this name, and further ones as `NAME/1`, … where they are not the same.

    Each replica has its own statistics of batch normalisation, for one, unless they are synchronised.
    """
    first, *others = values
    return {name: first, **{f"{name}/{i}": each for i, each in enumerate(others, 1) if each.tobytes() != first.tobytes()}}


def put_back(
    name: str,
    variable: Any,
    strategy: tf.distribute.Strategy,
    arrays: Mapping[str, np.ndarray],
    *,
    first_replica: int = 0,
    num_saved: int | None = None,
) -> None:
    """Gives every replica of a variable its value among `arrays`, which `replica_arrays` made.

    Args:
        name: the name that it was given.
        variable: the variable.
        strategy: the strategy that it was made under.
        arrays: the arrays.
        first_replica: the number of the first replica of this process.
        num_saved: the number of replicas that saved them, if it is another one than now: each replica then gets their mean.
    """
    mean = None if num_saved is None else _mean([arrays.get(f"{name}/{i}", arrays[name]) for i in range(num_saved)])
    for i, replica in enumerate(of_each_replica(variable, strategy), first_replica):
        values = arrays.get(f"{name}/{i}", arrays[name]) if mean is None else mean
        # NumPy's files keep only the size of types that it does not know, such as bfloat16.
        replica.assign(values.view(tf.as_dtype(replica.dtype).as_numpy_dtype) if values.dtype.kind == "V" else values)


def _mean(values: list[np.ndarray]) -> np.ndarray:
    """Returns the mean of some values; the first where they are no floating-point numbers."""
    return np.mean(values, axis=0, dtype=np.float64).astype(values[0].dtype) if values[0].dtype.kind == "f" else values[0]
