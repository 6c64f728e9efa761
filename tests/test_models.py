"""One battery over every backbone, and the networks that are built of them."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from sela_tf.models.backbones import BACKBONES
from sela_tf.models.backbones.applications import application
from sela_tf.models.build import bare_network, build_model, stage_names, with_rotation_head
from sela_tf.models.heads import MultiHead, find_multi_head
from sela_tf.models.layer_names import EMBEDDING

SMALL, LARGE, ALEXNET, VECTORS = (12, 10, 3), (20, 18, 3), (65, 63, 3), (7,)


STAGES = {
    "resnet20": [(12, 10, 4), (12, 10, 4), (6, 5, 8), (3, 3, 16)],
    "resnet18": [(5, 5, 4), (5, 5, 4), (3, 3, 8), (2, 2, 16), (1, 1, 32)],
    "resnet50": [(5, 5, 4), (5, 5, 16), (3, 3, 32), (2, 2, 64), (1, 1, 128)],
}
STAGES |= {"resnet8": STAGES["resnet20"], "resnet56": STAGES["resnet20"]}
STAGES |= {"preact_resnet18": STAGES["resnet18"], "preact_resnet50": STAGES["resnet50"]}


SLOW = ("resnet20", "resnet56", "resnet18", "resnet50", "preact_resnet50")


def shape_for(backbone: str) -> tuple[int, ...]:
    if backbone in ("identity", "mlp"):
        return VECTORS
    return ALEXNET if backbone == "alexnet" else SMALL if backbone in ("resnet8", "resnet20", "resnet56") else LARGE


def small(backbone: str, **options) -> keras.Model:
    keras.utils.set_random_seed(0)
    settings = {
        "image_shape": shape_for(backbone),
        "num_heads": 2,
        "num_clusters": 5,
        "width": 0 if backbone == "identity" else 4,
        "hidden_units": 6,
        "mean": [100.0],
        "variance": [900.0],
    }
    return build_model(backbone, **{**settings, **options})


@pytest.fixture
def images(rng, request) -> np.ndarray:
    return rng.integers(0, 256, (6, *shape_for(request.getfixturevalue("backbone")))).astype(np.float32)


@pytest.mark.parametrize("backbone", [pytest.param(name, marks=pytest.mark.slow) if name in SLOW else name for name in BACKBONES])
class TestConformance:
    def test_logits_embedding_and_stages(self, backbone, images):
        model = small(backbone)
        assert model(images).shape == (6, 2, 5)
        assert model.output.dtype == "float32"
        assert model.get_layer("hidden").output.shape == (None, 6)
        if backbone == "alexnet":
            names = ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7"]
            shapes = [(15, 15, 4), (7, 7, 10), (3, 3, 16), (3, 3, 16), (3, 3, 10), (170,), (170,)]
        elif shape_for(backbone) == VECTORS:
            names = ["fc0"] if backbone == "identity" else ["fc1", "fc2"]
            shapes = [(7,)] if backbone == "identity" else [(4,), (4,)]
        else:
            shapes = STAGES[backbone]
            names = ["stem", *(f"stage{i}" for i in range(1, len(shapes)))]
        assert [model.get_layer(name).output.shape[1:] for name in names] == shapes
        assert model.get_layer(EMBEDDING).output.shape == (None, shapes[-1][-1])
        assert find_multi_head(model).name == "heads"
        with pytest.raises(ValueError, match="hidden"):
            small(backbone, hidden_units=0).get_layer("hidden")

    def test_xla_equals_eager(self, backbone, images):
        model = small(backbone)
        compiled = tf.function(lambda x: model(x, training=False), jit_compile=True)(images)
        np.testing.assert_allclose(compiled, model(images, training=False), atol=1e-4)

    def test_saved_and_exported_equal_the_call(self, backbone, images, tmp_path):
        model = small(backbone)
        expected = model(images, training=False).numpy()
        model.save(tmp_path / "model.keras")
        np.testing.assert_allclose(keras.models.load_model(tmp_path / "model.keras")(images), expected, atol=1e-6)
        model.export(tmp_path / "exported")
        loaded = tf.saved_model.load(tmp_path / "exported")
        # the graph may sum in another order than the call, and 56 layers of it make 1e-5 of logits near 10 on some processors
        np.testing.assert_allclose(loaded.serve(images), expected, rtol=1e-5, atol=1e-5)

    def test_mixed_precision_keeps_float32_logits(self, backbone, images):
        model = small(backbone, dtype="mixed_bfloat16")
        assert model.get_layer(EMBEDDING).output.dtype == "bfloat16"
        logits = model(images, training=True)
        assert logits.dtype == tf.float32
        heads = model.get_layer("heads")
        features = keras.Model(model.input, heads.input)(images)
        np.testing.assert_allclose(model(images)[:, 1], heads.head_logits(features, 1), atol=1e-5)
        np.testing.assert_allclose(logits, small(backbone)(images, training=True), atol=0.05)

    def test_every_variable_learns_and_the_same_seed_is_the_same_network(self, backbone, images):
        model, twin = small(backbone), small(backbone)
        for a, b in zip(model.weights, twin.weights, strict=True):
            np.testing.assert_array_equal(a, b)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean(tf.square(model(images, training=True) - tf.reshape(tf.range(60.0), [6, 2, 5])))
        for variable, gradient in zip(model.trainable_variables, tape.gradient(loss, model.trainable_variables), strict=True):
            assert gradient is not None, variable.path
            assert np.abs(gradient).max() > 0, variable.path


def test_parameter_counts_of_the_published_networks():
    """He et al. 2016, table 6: 0.27 M for 20 layers, 0.85 M for 56, with ten classes (option A, which has no projections)."""
    for backbone, millions in (("resnet20", 0.27), ("resnet56", 0.85)):
        model = build_model(backbone, image_shape=(32, 32, 3), num_heads=1, num_clusters=10)
        projections = sum(layer.count_params() for layer in model.layers if "shortcut" in layer.name)
        assert (model.count_params() - projections) / 1e6 == pytest.approx(millions, abs=0.01)
        weighted = [
            layer for layer in model.layers if isinstance(layer, keras.layers.Conv2D | MultiHead) and "shortcut" not in layer.name
        ]
        assert len(weighted) == int(backbone.removeprefix("resnet"))


@pytest.mark.slow
@pytest.mark.parametrize(("backbone", "published"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_parameters_of_the_imagenet_networks(backbone, published):
    """The counts with 1000 classes, as torchvision has them; moving statistics are no parameters.

    Pre-activation ResNets lack the normalisations of the stem and of the four shortcuts (three where the first is none) and have one in
    each block's input and one at the end.
    """
    count = _trainable(build_model(backbone, image_shape=(64, 64, 3), num_heads=1, num_clusters=1000))
    assert count == published
    stages = [64 * 2**i for i in range(4)]
    if backbone == "resnet18":
        added, dropped = 2 * stages[-1], 2 * (64 + sum(stages[1:]))
        # the normalisations after the convolutions become those before them: of each block's input, and of its middle
        before = [(64, 64), (64, 64), (64, 128), (128, 128), (128, 256), (256, 256), (256, 512), (512, 512)]
        after = [(64, 64)] * 2 + [(128, 128)] * 2 + [(256, 256)] * 2 + [(512, 512)] * 2
    else:
        added, dropped = 2 * 4 * stages[-1], 2 * (64 + 4 * sum(stages))
        inputs = [64, *[256] * 3, *[512] * 4, *[1024] * 6, *[2048] * 2]
        middle = [width for width, number in zip(stages, (3, 4, 6, 3), strict=True) for _ in range(number)]
        before = list(zip(inputs, middle, middle, strict=True))
        after = [(width, width, 4 * width) for width in middle]
    expected = published + added - dropped + 2 * (np.sum(before) - np.sum(after))
    assert _trainable(build_model(f"preact_{backbone}", image_shape=(64, 64, 3), num_heads=1, num_clusters=1000)) == expected


def test_parameters_of_alexnet():
    """Convolutions and their biases, normalisations, the two layers of 4096, and 3000 clusters, at 224 x 224."""
    convolutions = 11 * 11 * 3 * 96 + 5 * 5 * 96 * 256 + 3 * 3 * (256 * 384 + 384 * 384 + 384 * 256)
    channels = 96 + 256 + 384 + 384 + 256
    layers = (6 * 6 * 256 + 1) * 4096 + (4096 + 1) * 4096 + (4096 + 1) * 3000
    model = build_model("alexnet", image_shape=(224, 224, 3), num_heads=1, num_clusters=3000)
    assert _trainable(model) == convolutions + 3 * channels + layers
    sides = [model.get_layer(f"conv{number}").output.shape[1] for number in range(1, 6)]
    assert sides == [55, 27, 13, 13, 13]
    for name, deviation in (
        ("conv2_conv", np.sqrt(2 / (5 * 5 * 256))),
        ("conv5_conv", np.sqrt(2 / (3 * 3 * 256))),
        ("fc7_dense", 0.01),
    ):
        assert np.std(model.get_layer(name).kernel) == pytest.approx(deviation, rel=0.01)
        assert not np.any(model.get_layer(name).bias)
    assert [model.get_layer(f"{name}_dropout").rate for name in ("fc6", "fc7")] == [0.5, 0.5]


def _trainable(model: keras.Model) -> int:
    return sum(int(np.prod(variable.shape)) for variable in model.trainable_variables)


class TestApplications:
    @pytest.mark.parametrize(
        "name", ["MobileNetV3Small", *(pytest.param(name, marks=pytest.mark.slow) for name in ("EfficientNetV2B0", "ConvNeXtTiny"))]
    )
    def test_is_the_network_without_its_preprocessing(self, name, rng, tmp_path):
        options = {"include_top": False, "weights": None, "input_shape": (64, 64, 3)}
        known = "include_preprocessing" in inspect.signature(getattr(keras.applications, name)).parameters
        network = getattr(keras.applications, name)(**options, **({"include_preprocessing": False} if known else {}))
        network.save_weights(tmp_path / "start.weights.h5")
        images = rng.integers(0, 256, (2, 64, 64, 3)).astype(np.float32)
        model = build_model(
            f"applications:{name}", image_shape=(64, 64, 3), num_heads=2, num_clusters=5, mean=[120.0], variance=[2500.0],
            weights=str(tmp_path / "start.weights.h5"),
        )  # fmt: skip
        assert model(images).shape == (2, 2, 5)
        embedding = keras.Model(model.input, model.get_layer(EMBEDDING).output)
        expected = tf.reduce_mean(network((images - 120.0) / 50.0), axis=[1, 2])
        np.testing.assert_allclose(embedding(images), expected, atol=1e-4)

    def test_precision(self):
        inputs = keras.Input((64, 64, 3))
        (stage,) = application(keras.layers.Rescaling(1 / 255)(inputs), "MobileNetV2", dtype="mixed_bfloat16").values()
        assert (stage.shape[1:], stage.dtype) == ((2, 2, 1280), "bfloat16")
        assert keras.mixed_precision.global_policy().name == "float32"

    def test_refuses_by_name(self, tmp_path):
        options = {"image_shape": (64, 64, 3), "num_heads": 1, "num_clusters": 2}
        for name, changed, message in (
            ("Vgg", {}, "MobileNetV2.*applications:Vgg"),
            ("EfficientNetB0", {}, "EfficientNetV2"),
            ("MobileNetV2", {"width": 8}, "width=8"),
            ("MobileNetV2", {"synchronized": True}, "synchronized=True"),
            ("MobileNetV2", {"weights": "gone.h5"}, "'gone.h5'"),
            ("MobileNetV2", {"weights": __file__}, "test_models.py' does not hold the weights of applications:MobileNetV2"),
            ("VGG16", {"image_shape": (16, 16, 3)}, "(?=.*VGG16).*16 x 16.*too small.*`image_size`"),
        ):
            with pytest.raises(ValueError, match=message):
                build_model(f"applications:{name}", **{**options, **changed})
        with pytest.raises(ValueError, match="weights.*resnet8"):
            build_model("resnet8", weights="any.h5", **options)


def test_convolutions_start_from_he_fan_out():
    kernel = (
        build_model("resnet8", image_shape=(8, 8, 3), num_heads=1, num_clusters=2, width=64)
        .get_layer("stage3_block1_b_conv")
        .kernel
    )
    assert np.std(kernel) == pytest.approx(np.sqrt(2 / (9 * 256)), rel=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"backbone": "vgg"}, "resnet8, resnet20, resnet56.*'vgg'"),
        ({"width": -1}, "width=-1"),
        ({"backbone": "alexnet", "image_shape": (62, 80, 3)}, "62 x 80 are too small for alexnet.*63.*`image_size`"),
        ({"backbone": "resnet50", "image_shape": (16, 16, 3)}, "too small for resnet50.*17"),
        ({"backbone": "resnet8", "image_shape": (16,)}, "`backbone=resnet8` takes images.*has vectors.*identity` or mlp"),
        ({"backbone": "mlp", "image_shape": (16, 16, 3)}, "`backbone=mlp` takes vectors, and the data set has images"),
        ({"backbone": "identity", "image_shape": (16,), "width": 3}, "leave `width` out"),
        ({"backbone": "mlp", "image_shape": (16, 3)}, "image_shape.*or .D,.*16, 3"),
        ({"hidden_units": -1}, "hidden_units=-1"),
        ({"num_clusters": 1}, "num_clusters=1"),
        ({"num_heads": 0}, "num_heads=0"),
        ({"image_shape": (8, 8)}, r"\(8, 8\)"),
    ],
)
def test_build_model_refuses_by_name(options, message):
    with pytest.raises(ValueError, match=message):
        small(**{"backbone": "resnet8", **options})


@pytest.mark.parametrize(
    ("backbone", "size", "stages"),
    [
        ("resnet8", 8, ["stem", "stage1", "stage2", "stage3", "embedding"]),
        ("preact_resnet18", 32, ["stem", "stage1", "stage2", "stage3", "stage4", "embedding"]),
        ("alexnet", 63, ["conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "embedding"]),
        ("applications:MobileNet", 32, ["conv_pw_13_relu", "embedding"]),
    ],
)
def test_stages_are_found_by_name(backbone, size, stages):
    model = build_model(backbone, image_shape=(size, size, 3), num_heads=1, num_clusters=4, width=0 if ":" in backbone else 4)
    assert stage_names(model) == stages


def test_the_rotation_head_shares_the_network(rng):
    network = build_model("resnet8", image_shape=(8, 8, 1), num_heads=2, num_clusters=4, width=4)
    both = with_rotation_head(network)
    images = rng.uniform(0, 255, (3, 8, 8, 1)).astype(np.float32)
    np.testing.assert_array_equal(both(images)["heads"], network(images))
    assert both(images)["rotation"].shape == (3, 4)
    assert both.count_params() == network.count_params() + 16 * 4 + 4
    both.compile("sgd", loss={"heads": "mse", "rotation": "mse"})
    alone = bare_network(both)
    assert getattr(alone, "optimizer", None) is None
    np.testing.assert_array_equal(alone(images), network(images))
    assert all(one is other for one, other in zip(alone.variables, network.variables, strict=True))
