"""Registration of the package's serializable classes with Keras as soon as Keras is loaded, and the refusal of other backends."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import os
import sys
import types
from collections.abc import Sequence

_SERIALIZABLE = ("models.heads", "models.batch_norm", "training.optimizer", "self_labelling.loss")
"""Modules of the package whose classes `keras.models.load_model` may find in a file."""


def other_backend() -> str | None:
    """Returns a message about the backend of Keras and the remedy; None where the backend is TensorFlow.

    Before Keras is loaded, the message is about the environment, and not about Keras' configuration file.
    """
    # While Keras is being loaded, it has no `config` yet.
    config = getattr(sys.modules.get("keras"), "config", None)
    loaded = None if config is None else config.backend()
    backend = loaded or os.environ.get("KERAS_BACKEND") or "tensorflow"
    if backend == "tensorflow":
        return None
    if loaded is None or backend == os.environ.get("KERAS_BACKEND"):
        return f"KERAS_BACKEND={backend}: sela_tf works with Keras on TensorFlow only: unset it, or set KERAS_BACKEND=tensorflow"
    return f"Keras runs on {backend} (see ~/.keras/keras.json), and sela_tf needs TensorFlow: set KERAS_BACKEND=tensorflow"


def register_with_keras() -> None:
    """Registers the serializable classes now, if Keras is loaded, otherwise as soon as it is; does not load Keras itself."""
    if hasattr(sys.modules.get("keras"), "saving"):
        _register()
    else:
        sys.meta_path.insert(0, _Registration())


def _register() -> None:
    """Imports the modules of _SERIALIZABLE, whose decorators register their classes."""
    # If the module that they all import is what loads Keras, it is not ready yet, and registers them at its end.
    early = "sela_tf.compat.releases" in sys.modules and not hasattr(sys.modules["sela_tf.compat.releases"], "Optimizer")
    # On another backend the modules cannot be used, and Keras must still load.
    if other_backend() is None and not early:
        for name in _SERIALIZABLE:
            importlib.import_module(f"sela_tf.{name}")


class _Registration(importlib.abc.MetaPathFinder):
    """An import hook that finds Keras by the other finders, and registers the classes once it is loaded."""

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
            # The hook stays until Keras is loaded: `importlib.util.find_spec` finds Keras without loading it.
            if self in sys.meta_path:
                sys.meta_path.remove(self)
                _register()

        # The loader keeps its type, which other code may ask the module for.
        vars(loader)["exec_module"] = load_and_register
        return spec
