"""Random state of a Keras training that neither the model's nor the optimizer's variables hold, and draws whose state nobody can read."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np

from sela_tf.compat.releases import IS_KERAS_3


def random_variables(model: keras.Model) -> list:
    """Returns the variables of random state that are none of `model.variables`.

    In Keras 3 it is the generator of `keras.random` calls without a seed; in Keras 2 those of the layers, where they have any.
    """
    if IS_KERAS_3:
        from keras.src.random.seed_generator import global_seed_generator

        return [global_seed_generator().state]
    generators = [layer._random_generator._generator for layer in model._flatten_layers() if hasattr(layer, "_random_generator")]
    return [each.state for each in generators if each is not None]


class GlobalGenerators:
    """The global generators of Python and of NumPy, which `keras.utils.set_random_seed` seeds."""

    def state(self) -> dict[str, np.ndarray]:
        """Returns their state as arrays; a normal deviate that waits to be drawn is NaN where there is none."""
        _, words, gauss = random.getstate()
        _, key, position, has_gauss, cached = np.random.get_state()
        return {
            "python": np.array(words, np.uint32),
            "python_gauss": np.array(np.nan if gauss is None else gauss),
            "numpy": np.array([*key, position], np.uint32),
            "numpy_gauss": np.array(cached if has_gauss else np.nan),
        }

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores the arrays of `state`."""
        gauss, cached = float(state["python_gauss"]), float(state["numpy_gauss"])
        random.setstate((3, tuple(map(int, state["python"])), None if np.isnan(gauss) else gauss))
        has_gauss = not np.isnan(cached)
        numpy_state = ("MT19937", state["numpy"][:-1], int(state["numpy"][-1]), int(has_gauss), cached if has_gauss else 0.0)
        np.random.set_state(numpy_state)


def unsaveable_draws(model: keras.Model) -> list[str]:
    """Returns the names of the operations of the compiled training step whose random state is inside TensorFlow, where it cannot be read.

    They are those of `tf.random.normal` and the like, and in Keras 2 of layers such as `Dropout`. Empty before the first step, and for a
    model that runs eagerly, which has no such graph.
    """
    found = set()
    for concrete in _traced(model.train_function):
        graph = concrete.graph.as_graph_def()
        nodes = [*graph.node, *(node for function in graph.library.function for node in function.node_def)]
        # Stateless operations take their seed as an input; these have two as attributes.
        found |= {node.name for node in nodes if "seed2" in node.attr}
    return sorted(found)


def _traced(function: Any) -> list:
    """Returns the traces of a `tf.function`, or of those that a Python function calls: Keras 3 wraps its own in one."""
    if hasattr(function, "_list_all_concrete_functions"):
        return function._list_all_concrete_functions()
    cells = [cell.cell_contents for cell in getattr(function, "__closure__", None) or ()]
    return [trace for each in cells if hasattr(each, "_list_all_concrete_functions") for trace in _traced(each)]
