"""The state of a training in `model.fit`, as arrays by name: what a save of it holds, and how it is put back."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import keras
import numpy as np

from sela_tf.compat.randomness import GlobalGenerators, random_variables
from sela_tf.compat.releases import learning_rate_variable, optimizer_variables
from sela_tf.files.saves import arrays_under
from sela_tf.models.finite import not_finite
from sela_tf.models.replicas import put_back, replica_arrays, replica_values
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.self_labelling.loss import tables_of


class HasState(Protocol):
    """A part of a training with a state of its own, such as `SelfLabelling`, `LabelTable`, `ClusterMonitor` and `CollapseDoctor`."""

    def state(self) -> Mapping[str, np.ndarray]:
        """Returns the state as arrays by name, of numbers, booleans or text."""

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        """Restores the arrays of `state`."""


class FitState:
    """The state of a compiled model in training: its variables, its optimizer's, random generators, and further parts.

    Args:
        model: the compiled model, whose optimizer is built.
        parts: the further parts, by name.

    Raises:
        ValueError: the model's loss reads a label table that no part holds.
    """

    def __init__(self, model: keras.Model, parts: Mapping[str, HasState]):
        saved = [part.labels if isinstance(part, SelfLabelling) else part for part in parts.values()]
        if any(all(part is not table for part in saved) for table in tables_of(model)):
            raise ValueError(
                "The model's SelfLabelLoss reads a LabelTable that `parts` has not: give the SelfLabelling that rewrites it, or the table"
            )
        self.parts = {**parts, "random": GlobalGenerators()}
        rate = learning_rate_variable(model.optimizer)
        optimizer = optimizer_variables(model.optimizer)
        # Keras 2 does not count it as one of the optimizer's variables.
        optimizer += [rate] if rate is not None and all(each is not rate for each in optimizer) else []
        kinds = {"model": list(model.variables), "optimizer": optimizer, "generators": random_variables(model)}
        self.variables = {f"{kind}/{i:04d}": each for kind, variables in kinds.items() for i, each in enumerate(variables)}
        self._strategy = model.distribute_strategy

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns the state as arrays by name; the values of a further replica only where they are not those of the first."""
        found: dict[str, np.ndarray] = {}
        for name, variable in self.variables.items():
            found |= replica_arrays(name, replica_values(variable, self._strategy))
        for place, part in self.parts.items():
            found |= {f"{place}/{name}": value for name, value in part.state().items()}
        return found

    def not_finite(self, arrays: Mapping[str, np.ndarray]) -> list[str]:
        """Returns the names of the variables and potentials among `arrays` that are not finite; in others NaN stands for what is not known."""
        learned = {
            name: value for name, value in arrays.items() if self._variable(name) is not None or name.endswith("/potentials")
        }
        variables = {name: self._variable(name) for name in not_finite(learned)}
        return [name if variable is None else _path(variable) for name, variable in variables.items()]

    def _variable(self, name: str) -> Any:
        """Returns the variable whose value on some replica the array of this name is, or None."""
        return self.variables.get("/".join(name.split("/")[:2]))

    def put_back(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Puts back what `arrays` gave.

        Raises:
            ValueError: the arrays are of other variables, and nothing is changed; or of a part of another shape.
        """
        for kind in ("model", "optimizer", "generators"):
            saved, now = (
                sum(re.fullmatch(rf"{kind}/\d+", name) is not None for name in names) for names in (arrays, self.variables)
            )
            if saved != now:
                raise ValueError(f"it has {saved} variables of the {kind}, now {now}")
        for name, variable in self.variables.items():
            had, has = arrays[name].shape, tuple(variable.shape)
            if had != has:
                raise ValueError(f"it has the {name.partition('/')[0]}'s {_path(variable)} of shape {had}, now {has}")
        for place, part in self.parts.items():
            part.restore(arrays_under(place, arrays))
        for name, variable in self.variables.items():
            put_back(name, variable, self._strategy, arrays)


def named_parts(parts: Sequence[HasState]) -> dict[str, HasState]:
    """Returns parts by the name of their class, which is numbered from the second of a class on.

    Raises:
        ValueError: one has no state.
    """
    named: dict[str, HasState] = {}
    for part in parts:
        kind = type(part).__name__
        if not (callable(getattr(part, "state", None)) and callable(getattr(part, "restore", None))):
            raise ValueError(
                "`parts` must have methods `state` and `restore`, as SelfLabelling, ClusterMonitor and CollapseDoctor have; what else counts "
                f"over epochs begins anew in a continued fit. Received: {kind}"
            )
        number = sum(type(other) is type(part) for other in named.values()) + 1
        named[kind if number == 1 else f"{kind}-{number}"] = part
    return named


def _path(variable: Any) -> str:
    """Returns the name of a variable with that of its layer."""
    return getattr(variable, "path", variable.name)
