"""Files of weights and of Keras models: nothing outside of them is read, no code in them is run, and NaN is found."""

from __future__ import annotations

import json
import pathlib
import shutil
import zipfile

import h5py
import keras
import numpy as np
import pytest
import tensorflow as tf

from sela_tf.files.hdf5 import check_weights_file
from sela_tf.models.keras_files import check_keras_file
from sela_tf.runs.names import WEIGHTS
from sela_tf.runs.network import describe_network, load_run
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.initial_state import first_network

OLD_RUN = pathlib.Path(__file__).parent.parent / "data" / "run_of_cf4b11e"


def external_link(file: h5py.File) -> None:
    file["secret"] = h5py.ExternalLink("/etc/passwd", "/")


def soft_link(file: h5py.File) -> None:
    file["a/secret"] = h5py.SoftLink("/a")


def external_values(file: h5py.File) -> None:
    file.create_dataset("secret", (8,), "u1", external=[("/etc/passwd", 0, 8)])


def virtual_values(file: h5py.File) -> None:
    layout = h5py.VirtualLayout((8,), "f4")
    layout[:] = h5py.VirtualSource("other.h5", "x", (8,))
    file.create_virtual_dataset("secret", layout)


def unwritten(file: h5py.File) -> None:
    file.create_dataset("huge", (10**12, 10), "f4")


def unwritten_chunks(file: h5py.File) -> None:
    file.create_dataset("huge", (10**12, 10), "f4", chunks=(10, 10))


def bomb(file: h5py.File) -> None:
    file.create_dataset("huge", data=np.zeros(2**25, "f4"), compression="gzip", compression_opts=1)


def nan(file: h5py.File) -> None:
    file["a/nan"] = np.array([1.0, np.nan, np.inf], np.float32)


def text(file: h5py.File) -> None:
    file["text"] = "words"


HOSTILE = {
    external_link: "'/secret' is a link to another place", soft_link: "'/a/secret' is a link to another place",
    external_values: "'/secret' lies in other files", virtual_values: "'/secret' lies in other files", unwritten: "claims 40000000000000 bytes",
    unwritten_chunks: "its arrays claim 40000000000", bomb: "its arrays claim 134217", nan: "2 of the 3 numbers of '/a/nan' are NaN",
    text: "'/text' is object, not numbers",
}  # fmt: skip


@pytest.fixture(scope="module")
def model() -> keras.Model:
    inputs = keras.Input((8, 8, 1))
    outputs = keras.layers.Conv2D(4, 3, activation="relu", kernel_regularizer="l2", name="conv0_conv")(inputs)
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(outputs))


@pytest.mark.parametrize("change", HOSTILE)
def test_weights(tmp_path, model, change):
    path = tmp_path / "x.weights.h5"
    model.save_weights(path)
    with h5py.File(path, "a") as file:
        file.create_group("a")
    check_weights_file(path)
    with h5py.File(path, "a") as file:
        change(file)
    with pytest.raises(ValueError, match=HOSTILE[change]):
        check_weights_file(path)


@pytest.mark.parametrize("damage", [lambda data: data[:500], lambda data: b"", lambda data: data[:96] + bytes(len(data) - 96)])
def test_damaged_weights(tmp_path, model, damage):
    path = tmp_path / "x.weights.h5"
    model.save_weights(path)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises((OSError, ValueError)):
        check_weights_file(path)


def test_half_precision_weights(tmp_path):
    half = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, dtype="bfloat16")])
    half.save_weights(tmp_path / "x.weights.h5")
    check_weights_file(tmp_path / "x.weights.h5")
    half.weights[0].assign(np.full((4, 3), np.nan))
    half.save_weights(tmp_path / "x.weights.h5")
    with pytest.raises(ValueError, match="12 of the 12 numbers"):
        check_weights_file(tmp_path / "x.weights.h5")


@pytest.mark.parametrize("change", [external_link, nan])
def test_weights_of_a_run(tmp_path, change):
    """Keras may follow links of names that it knows: it never sees the file."""
    shutil.copytree(OLD_RUN, tmp_path / "run")
    load_run(tmp_path / "run")
    with h5py.File(tmp_path / "run" / WEIGHTS, "a") as file:
        if "a" not in file:
            file.create_group("a")
        change(file)
    with pytest.raises(ConfigError, match=HOSTILE[change]):
        load_run(tmp_path / "run")


@pytest.mark.parametrize(("backbone", "ending"), [("resnet8", ".keras"), ("applications:MobileNetV2", ".weights.h5")])
def test_weights_to_start_from(tmp_path, backbone, ending, model):
    path = tmp_path / f"x{ending}"
    if ending == ".keras":
        model.save(path)
        TestModels.change(path, {"config.json": json.dumps(named(class_name="Lambda", config={})).encode()})
    else:
        with h5py.File(path, "w") as file:
            external_link(file)
    config = SelaConfig(
        dataset="x",
        backbone=backbone,
        width=4 if ending == ".keras" else 0,
        num_heads=2,
        num_clusters=5,
        hidden_units=0,
        backbone_weights=str(path),
    )
    description = describe_network(config, (32, 32, 3), (100.0,) * 3, (50.0,) * 3)
    with pytest.raises(ValueError, match="a layer Lambda" if ending == ".keras" else "is a link to another place"):
        first_network(config, description, tf.distribute.get_strategy())


def named(**part: object) -> dict:
    return {"config": {"layers": [{"class_name": "Dense", "module": "keras.layers", "config": {"activation": part}}]}}


class TestModels:
    @pytest.mark.parametrize(
        ("config", "message"),
        [
            (named(class_name="Lambda", module="keras.layers", config={}), "a layer Lambda, which may run code"),
            (named(class_name="__lambda__", config={}), "a layer __lambda__"),
            (named(class_name="TFSMLayer", module="keras.layers", config={"filepath": "/x"}), "a layer TFSMLayer"),
            (
                named(class_name="function", module="os", config="system"),
                "code that is not a part of Keras' layers: 'system' of module 'os'",
            ),
            (named(class_name="Popen", module="subprocess", config={}), "'Popen' of module 'subprocess'"),
            (named(class_name="function", module="keras.utils", config="get_file"), "'get_file' of module 'keras.utils'"),
            (named(class_name="function", module="keras.models", config="load_model"), "'load_model' of module 'keras.models'"),
            (named(class_name="function", module="keras.activations", config="x.get_file"), "'x.get_file'"),
            (named(class_name="utils.get_file", module="keras", config={}), "'utils.get_file' of module 'keras'"),
            (named(class_name="function", module="builtins", config="eval"), "'eval' of module 'builtins'"),
            (
                named(class_name="TFOpLambda", module="keras.layers", config={"function": "io.write_file"}),
                "operation 'io.write_file'",
            ),
            ([], "config.json describes no model"),
        ],
    )
    def test_code(self, tmp_path, model, config, message):
        model.save(tmp_path / "x.keras")
        self.change(tmp_path / "x.keras", {"config.json": json.dumps(config).encode()})
        with pytest.raises(ValueError, match=message):
            check_keras_file(tmp_path / "x.keras")

    def test_deep_configuration(self, tmp_path, model):
        model.save(tmp_path / "x.keras")
        self.change(tmp_path / "x.keras", {"config.json": b"[" * 100_000})
        with pytest.raises(ValueError, match="damaged"):
            check_keras_file(tmp_path / "x.keras")

    @pytest.mark.parametrize("change", [external_link, nan])
    def test_weights_within(self, tmp_path, model, change):
        path = tmp_path / "x.keras"
        model.save(path)
        check_keras_file(path)
        model.save_weights(tmp_path / "x.weights.h5")
        with h5py.File(tmp_path / "x.weights.h5", "a") as file:
            change(file)
        self.change(path, {"model.weights.h5": (tmp_path / "x.weights.h5").read_bytes()})
        for weights_only in (True, False):
            with pytest.raises(ValueError, match=HOSTILE[change]):
                check_keras_file(path, weights_only=weights_only)

    def test_another_format_under_the_name(self, tmp_path, model):
        """Keras 2 would run the code of a Lambda in it."""
        model.save_weights(tmp_path / "x.weights.h5")
        shutil.move(tmp_path / "x.weights.h5", tmp_path / "x.keras")
        with pytest.raises(ValueError, match="not a Keras model: no zip file"):
            check_keras_file(tmp_path / "x.keras")

    def test_own_and_published_networks(self, tmp_path):
        for network in (
            keras.applications.MobileNetV2(weights=None, include_top=False, input_shape=(32, 32, 3), alpha=0.35),
            keras.Sequential([keras.Input((4,)), keras.layers.Dense(3, activation="gelu", kernel_initializer="he_normal")]),
        ):
            network.compile("adam", "mse")
            network.save(tmp_path / "x.keras")
            check_keras_file(tmp_path / "x.keras")

    @staticmethod
    def change(path: pathlib.Path, members: dict[str, bytes]) -> None:
        """Replaces members of a model."""
        with zipfile.ZipFile(path) as archive:
            found = {name: archive.read(name) for name in archive.namelist()}
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in {**found, **members}.items():
                archive.writestr(name, data)
