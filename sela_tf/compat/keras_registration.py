"""The classes of this package are known to Keras as soon as Keras is loaded, and another backend than TensorFlow is refused by name."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Sequence

_SERIALIZABLE = ("models.heads", "models.batch_norm", "training.optimizer", "self_labelling.loss")
"""Modules whose classes `keras.models.load_model` may meet in a file."""


def other_backend() -> str | None:
    """Says what is wrong with the backend of Keras, and the way out; None where it is TensorFlow.

    Before Keras is loaded, the environment is what can be known of it.
    """
    # of a Keras that is being loaded just now, there is no `config`
    config = getattr(sys.modules.get("keras"), "config", None)
    loaded = None if config is None else config.backend()
    backend = loaded or os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend == "tensorflow":
        return None
    if loaded is None or backend == os.environ.get("KERAS_BACKEND"):
        return f"KERAS_BACKEND={backend}: sela_tf works with Keras on TensorFlow only: unset it, or set KERAS_BACKEND=tensorflow"
    return f"Keras runs on {backend} (see ~/.keras/keras.json), and sela_tf needs TensorFlow: set KERAS_BACKEND=tensorflow"


def register_with_keras() -> None:
    """Registers the serializable classes now, if Keras is loaded, otherwise when it is; that Keras is loaded is not brought about."""
    if hasattr(sys.modules.get("keras"), "saving"):
        _register()
    else:
        sys.meta_path.insert(0, _Registration())


def _register() -> None:
    # on another backend there is nothing that they could be loaded for
    if other_backend() is None:
        for name in _SERIALIZABLE:
            importlib.import_module(f"sela_tf.{name}")


class _Registration(importlib.abc.MetaPathFinder):
    """Finds Keras as everybody else does, and registers the classes after it was loaded, once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "keras":
            return None
        others = (finder.find_spec(fullname, path, target) for finder in sys.meta_path if finder is not self)
        spec = next((spec for spec in others if spec is not None), None)
        if spec is None or spec.loader is None:
            return spec
        loader = spec.loader
        load = loader.exec_module

        def load_and_register(module: types.ModuleType) -> None:
            load(module)
            # not before: whoever only asks whether Keras is there finds it without loading it
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        # its own loader, so that what asks the module for it finds what it expects
        vars(loader)["exec_module"] = load_and_register
        return spec
