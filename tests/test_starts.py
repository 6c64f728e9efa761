"""Networks that start from weights on disk: those that Keras publishes, and a Keras model of one's own; a backbone that learns more slowly, or later."""

from __future__ import annotations

import os
import pathlib
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf

from sela_tf.models.backbones.applications import imagenet_weights
from sela_tf.models.build import build_model, cut_at
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.runs.network import describe_network
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.experiment import Experiment
from sela_tf.training.initial_state import check_backbone_weights, first_network
from sela_tf.training.optimizer import CoupledSGD

SETTINGS = {"dataset": "x", "backbone": "resnet8", "width": 4, "hidden_units": 8, "num_heads": 2, "num_clusters": 5}


def network(**settings) -> keras.Model:
    config = SelaConfig(**{**SETTINGS, **settings})
    description = describe_network(config, (32, 32, 3), (100.0,) * 3, (50.0,) * 3)
    return first_network(config, description, tf.distribute.get_strategy())


@pytest.fixture
def keras_home(tmp_path, monkeypatch):
    monkeypatch.setenv("KERAS_HOME", str(tmp_path / "home"))
    imagenet_weights.cache_clear()
    yield tmp_path / "home" / "models"
    imagenet_weights.cache_clear()


class TestPublished:
    MOBILE = "mobilenet_v2_weights_tf_dim_ordering_tf_kernels_1.0_224_no_top.h5"

    def test_a_missing_file_is_named_and_nothing_is_downloaded(self, keras_home):
        config = SelaConfig(**{**SETTINGS, "backbone": "applications:MobileNetV2", "width": 0, "backbone_weights": "imagenet"})
        with pytest.raises(
            ConfigError, match=f"{keras_home}/{self.MOBILE} is not there.*from https://.*or let Keras do so with `download=True`"
        ):
            check_backbone_weights(config)
        assert not keras_home.exists()

    def test_another_file_is_named_and_stays(self, keras_home):
        config = SelaConfig(**{**SETTINGS, "backbone": "applications:EfficientNetV2B0", "width": 0, "backbone_weights": "imagenet"})
        keras_home.mkdir(parents=True)
        path = keras_home / "efficientnetv2-b0_notop.h5"
        path.write_bytes(b"another")
        with pytest.raises(ConfigError, match=f"{path} is not the file that Keras publishes"):
            check_backbone_weights(config)
        assert path.read_bytes() == b"another"

    @pytest.mark.slow
    def test_they_are_taken(self, keras_home):
        keras.utils.set_random_seed(7)
        published = keras.applications.MobileNetV2(include_top=False, weights=None)
        keras_home.mkdir(parents=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            published.save(keras_home / self.MOBILE)
        found = network(backbone="applications:MobileNetV2", width=0, backbone_weights="imagenet")
        taken = cut_at(found, EMBEDDING).get_weights()
        wanted = published.get_weights()
        assert len(taken) == len(wanted)
        for one, other in zip(taken, wanted, strict=True):
            np.testing.assert_array_equal(one, other)

    def test_are_of_networks_of_keras_alone(self):
        for backbone in ({"backbone": "resnet8"}, {"backbone": None}):
            with pytest.raises(ConfigError, match="`backbone_weights=imagenet` is for `backbone=applications:NAME`"):
                check_backbone_weights(SelaConfig(**{**SETTINGS, **backbone, "backbone_weights": "imagenet"}))

    def test_the_word_is_no_path(self):
        assert SelaConfig(dataset="digits", backbone_weights="imagenet").absolute().backbone_weights == "imagenet"


class TestKerasModel:
    @pytest.fixture
    def saved(self, tmp_path) -> tuple[str, keras.Model]:
        keras.utils.set_random_seed(8)
        model = build_model("resnet8", image_shape=(16, 16, 3), num_heads=1, num_clusters=3, width=4)
        path = os.fspath(tmp_path / "own.keras")
        model.save(path)
        return path, model

    def test_its_layers_are_taken_by_their_names(self, saved):
        path, model = saved
        found = network(backbone_weights=path)
        for one, other in zip(cut_at(found, EMBEDDING).get_weights(), cut_at(model, EMBEDDING).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        np.testing.assert_allclose(found.get_layer("normalization")(np.full((1, 2, 2, 3), 100.0)), 0, atol=1e-6)

    def test_a_model_within_a_model(self, saved, tmp_path):
        _, model = saved
        inputs = keras.Input((16, 16, 3))
        outer = keras.Model(inputs, keras.layers.Dense(2)(cut_at(model, EMBEDDING)(inputs)))
        outer.save(tmp_path / "outer.keras")
        found = network(backbone_weights=os.fspath(tmp_path / "outer.keras"))
        np.testing.assert_array_equal(cut_at(found, EMBEDDING).get_weights()[0], cut_at(model, EMBEDDING).get_weights()[0])

    def test_others_are_refused(self, saved, tmp_path):
        path, _ = saved
        with pytest.raises(ConfigError, match=r"lacks \d+ of the \d+ layers with weights of `backbone=resnet8`, such as '"):
            network(backbone_weights=path, width=8)
        (tmp_path / "cut.keras").write_bytes(pathlib.Path(path).read_bytes()[:500])
        with pytest.raises(ConfigError, match="is not a Keras model, or not a whole one"):
            network(backbone_weights=os.fspath(tmp_path / "cut.keras"))
        with pytest.raises(ConfigError, match="none.keras`: there is no such file"):
            network(backbone_weights=os.fspath(tmp_path / "none.keras"))


class TestSlowBackbone:
    def test_against_numpy(self, rng):
        """Two variables, of which the first is frozen for two steps and then has a fifth of the rate."""
        start = [rng.normal(size=3).astype(np.float32) for _ in range(2)]
        variables = [keras.Variable(value) for value in start]
        optimizer = CoupledSGD(0.1, momentum=0.9, coupled_weight_decay=0.02, num_slow=1, slow_share=0.2, frozen_steps=2)
        optimizer.build(variables)
        expected, velocities = [value.astype(np.float64) for value in start], [np.zeros(3), np.zeros(3)]
        for step in range(5):
            gradients = [rng.normal(size=3).astype(np.float32) for _ in range(2)]
            optimizer.apply_gradients([(tf.constant(g), v) for g, v in zip(gradients, variables, strict=True)])
            for i, share in ((0, 0.2 * (step >= 2)), (1, 1.0)):
                velocities[i] = (0.9 * velocities[i] + gradients[i] + 0.02 * expected[i]) * (share > 0)
                expected[i] -= 0.1 * share * velocities[i]
            if step < 2:
                np.testing.assert_array_equal(variables[0].numpy(), start[0])
        for variable, value in zip(variables, expected, strict=True):
            np.testing.assert_allclose(variable.numpy(), value, rtol=1e-5, atol=1e-6)
        twin = CoupledSGD.from_config(optimizer.get_config())
        assert (twin.num_slow, twin.slow_share, twin.frozen_steps) == (1, 0.2, 2)

    def test_a_run_continues_without_the_file(self, tmp_path):
        """Only the first step needs it; the rate of the backbone stays."""
        settings = {"backbone_learning_rate": 0.01, "frozen_epochs": 2, "batch_size": 64, "epochs": 3, "monitor_examples": 0}
        config = SelaConfig(
            dataset="digits", backbone="resnet8", width=2, backbone_weights="gone.keras", cache_dir=str(tmp_path), **settings
        )
        experiment = Experiment(config, tf.distribute.get_strategy(), begins=False)
        assert experiment.model.optimizer.frozen_steps == 2 * experiment.steps_per_epoch
        assert experiment.model.optimizer.num_slow > 0

    @pytest.mark.parametrize("setting", [{"backbone_learning_rate": 0.01}, {"frozen_epochs": 2}])
    def test_needs_weights_to_start_from(self, setting):
        ((name, value),) = setting.items()
        with pytest.raises(ConfigError, match=f"`{name}={value}` is for a backbone that starts from `backbone_weights`"):
            SelaConfig(dataset="x", **setting)
        with pytest.raises(ConfigError, match=f"`{name}={value}` needs `optimizer=sgd`"):
            SelaConfig(dataset="x", backbone_weights="x.keras", optimizer="lamb", **setting)
