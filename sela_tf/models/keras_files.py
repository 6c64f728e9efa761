"""Files of Keras, models and weights, checked before Keras opens them: they must not run code, nor lead to other files."""

from __future__ import annotations

import builtins
import json
import os
import re
import shutil
import tempfile
import zipfile
from collections.abc import Mapping
from typing import Any

from sela_tf.files.archives import check_sizes
from sela_tf.files.hdf5 import check_weights_file

_WEIGHTS, _CONFIG = "model.weights.h5", "config.json"
"""The members of a Keras model that hold its weights and its layers."""
_MOST_CONFIG = 2**26
"""Bytes of the longest description of layers that is read."""
_CLASSES = re.compile(
    r"(keras|tf_keras|sela_tf)(\.src)?"
    r"(\.(layers|models|engine|initializers|regularizers|constraints|activations|dtype_policies|mixed_precision|ops|applications)(\.\w+)*)?|builtins"
)
"""Modules whose classes a model may name. Releases of Keras have imported any other, and called what it names."""
_FUNCTIONS = re.compile(r"(keras|tf_keras)(\.src)?\.(initializers|regularizers|constraints|activations)(\.\w+)*|builtins")
"""Modules whose functions it may name."""
_RUNNING = (
    "Lambda", "__lambda__", "TFSMLayer", "TorchModuleWrapper", "JaxLayer", "FlaxLayer", "StringLookup", "IntegerLookup", "TextVectorization"
)  # fmt: skip
"""Classes that run code of the file, or read other files that it names."""

_OPERATIONS, _COMPUTING = ("TFOpLambda", "SlicingOpLambda"), ("math.", "nn.", "__operators__.")
"""Layers of Keras 2 that call any operation of TensorFlow, and the beginnings of those that only compute."""


def check_keras_file(path: str | os.PathLike[str], *, weights_only: bool = False) -> None:
    """Checks a Keras model (NAME.keras), or the HDF5 file of its weights, by its content.

    Args:
        path: The file.
        weights_only: True also takes an HDF5 file, and leaves the description of layers alone, which Keras then does not read.

    Raises:
        OSError: The file cannot be read.
        ValueError: It is neither, names code or other files, claims more bytes than it has, or its weights are not finite.
    """
    if not zipfile.is_zipfile(path):
        if not weights_only:
            # Keras would take it for an older format, which may hold code.
            raise ValueError("not a Keras model: no zip file")
        check_weights_file(path)
        return
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryFile() as copy:
            names = archive.namelist()
            if len(set(names)) < len(names) or not {_WEIGHTS, _CONFIG} <= set(names):
                raise ValueError(f"not a Keras model: it must hold {_WEIGHTS} and {_CONFIG}, once")
            check_sizes(archive.infolist(), os.path.getsize(path))
            if not weights_only:
                _check_config(archive)
            with archive.open(_WEIGHTS) as file:
                # A copy of the weights may be as large as the memory; on disk it is bounded by the size that was checked.
                shutil.copyfileobj(file, copy)
            check_weights_file(copy)
    # The zip library raises a RuntimeError for members that are encrypted, and NotImplementedError for a packing that it does not know.
    except (zipfile.BadZipFile, EOFError, RuntimeError, NotImplementedError) as error:
        raise ValueError(f"damaged ({error})") from error


def _check_config(archive: zipfile.ZipFile) -> None:
    """Checks the description of the layers of a model.

    Raises:
        ValueError: It is no JSON, or names code that is not Keras' own.
    """
    if archive.getinfo(_CONFIG).file_size > _MOST_CONFIG:
        raise ValueError(f"{_CONFIG} has more than {_MOST_CONFIG} bytes")
    described = json.loads(archive.read(_CONFIG))
    if not isinstance(described, dict):
        raise ValueError(f"{_CONFIG} describes no model")
    # Models are loaded without what they were compiled with.
    left: list[Any] = [{name: value for name, value in described.items() if name != "compile_config"}]
    while left:
        found = left.pop()
        if isinstance(found, list):
            left += found
        elif isinstance(found, dict):
            left += found.values()
            if "class_name" in found:
                _check_named(found)


def _check_named(described: Mapping[str, Any]) -> None:
    """Checks the class or the function that a part of a model names.

    Raises:
        ValueError: It is not one of Keras' layers and of what they consist of.
    """
    module, name, is_function = described.get("module"), described["class_name"], described["class_name"] == "function"
    config = described.get("config")
    operation = config.get("function") if isinstance(config, dict) else None
    if name in _OPERATIONS and not str(operation).startswith(_COMPUTING):
        raise ValueError(f"the operation {operation!r} of TensorFlow, which may read or write files")
    if name in _RUNNING:
        raise ValueError(f"a layer {name}, which may run code or read other files")
    # Keras finds registered classes without a module, and nothing else.
    known = module is None or (isinstance(module, str) and (_FUNCTIONS if is_function else _CLASSES).fullmatch(module))
    called = config if is_function else name
    # Python's own functions are no activations, and a name with a point leads out of its module.
    if not known or not isinstance(called, str) or "." in called or (is_function and hasattr(builtins, called)):
        raise ValueError(f"code that is not a part of Keras' layers: {called!r} of module {module!r}")
