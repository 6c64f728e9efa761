"""One battery over every backbone; the layers of our own against Keras' and against plain formulas."""

from __future__ import annotations

import inspect

import keras
import numpy as np
import pytest
import tensorflow as tf

from sela_tf.models.backbones import BACKBONES
from sela_tf.models.backbones.applications import application
from sela_tf.models.batch_norm import FusedBatchNormalization
from sela_tf.models.build import bare_network, build_model, stage_names, with_rotation_head
from sela_tf.models.heads import MultiHead, find_multi_head
from sela_tf.models.inference import BatchedInference
from sela_tf.models.layer_names import EMBEDDING

SMALL, LARGE, ALEXNET, VECTORS = (12, 10, 3), (20, 18, 3), (65, 63, 3), (7,)
STAGES = {
    "resnet20": [(12, 10, 4), (12, 10, 4), (6, 5, 8), (3, 3, 16)],
    "resnet18": [(5, 5, 4), (5, 5, 4), (3, 3, 8), (2, 2, 16), (1, 1, 32)],
    "resnet50": [(5, 5, 4), (5, 5, 16), (3, 3, 32), (2, 2, 64), (1, 1, 128)],
}
STAGES |= {"resnet8": STAGES["resnet20"], "resnet56": STAGES["resnet20"]}
STAGES |= {"preact_resnet18": STAGES["resnet18"], "preact_resnet50": STAGES["resnet50"]}
SLOW = ("resnet56", "resnet50", "preact_resnet50")


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
        model.export(tmp_path / "exported", verbose=False)
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


@pytest.mark.parametrize(("backbone", "published"), [("resnet18", 11_689_512), ("resnet50", 25_557_032)])
def test_parameters_of_the_imagenet_networks(backbone, published):
    """With 1000 classes, as torchvision counts them; moving statistics are none. Pre-activation ResNets lack the normalisations of the
    stem and of the four shortcuts (three where the first is none) and have one in each block's input and one at the end."""
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
    @pytest.mark.parametrize("name", ["MobileNetV3Small", "EfficientNetV2B0", "ConvNeXtTiny"])
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
            ("VGG16", {"image_shape": (16, 16, 3)}, "VGG16.*16 x 16.*too small.*`image_size`"),
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
    assert [variable.path for variable in alone.variables] == [variable.path for variable in network.variables]


class TestMultiHead:
    def test_is_so_many_dense_layers(self, rng):
        features = rng.normal(size=(7, 4)).astype(np.float32)
        heads = MultiHead(3, 5)
        heads.build((None, 4))
        heads.bias.assign(rng.normal(size=(3, 5)))
        for head in range(3):
            expected = features @ np.asarray(heads.kernel)[:, head] + np.asarray(heads.bias)[head]
            np.testing.assert_allclose(heads(features)[:, head], expected, atol=1e-6)
            np.testing.assert_allclose(heads.head_logits(features, head), expected, atol=1e-6)
        assert np.std(MultiHead(10, 100)(np.eye(50, dtype=np.float32))) == pytest.approx(0.01, rel=0.05)

    def test_config_round_trip(self):
        twin = MultiHead.from_config(MultiHead(3, 5, name="mine").get_config())
        assert (twin.num_heads, twin.num_clusters, twin.name) == (3, 5, "mine")

    def test_refuses_images(self):
        with pytest.raises(ValueError, match="pool or flatten"):
            MultiHead(1, 2)(np.zeros((2, 3, 3, 4), np.float32))

    def test_none_or_two_are_refused(self):
        inputs = keras.Input((4,))
        with pytest.raises(ValueError, match="Received: 0"):
            find_multi_head(keras.Model(inputs, keras.layers.Dense(2)(inputs)))
        with pytest.raises(ValueError, match="Received: 2"):
            find_multi_head(keras.Model(inputs, [MultiHead(1, 2)(inputs), MultiHead(1, 2)(inputs)]))


class TestFusedBatchNormalization:
    """Against `keras.layers.BatchNormalization` with the same constants."""

    @pytest.fixture(params=[(8, 5, 4, 3), (16, 3)], ids=["images", "vectors"])
    def inputs(self, request, rng) -> tf.Tensor:
        return tf.constant(rng.normal(2.0, 3.0, request.param).astype(np.float32))

    @staticmethod
    def pair(inputs, **options):
        layers = FusedBatchNormalization(**options), keras.layers.BatchNormalization(momentum=0.9, epsilon=1e-5, **options)
        for layer in layers:
            layer.build(inputs.shape)
            layer.gamma.assign([0.5, 1.5, 2.5])
            layer.beta.assign([1.0, 0.0, -1.0])
            layer.moving_mean.assign([0.1, 0.2, 0.3])
            layer.moving_variance.assign([1.1, 1.2, 1.3])
        return layers

    def test_training(self, inputs):
        ours, theirs = self.pair(inputs)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(inputs)
            results = [layer(inputs, training=True) for layer in (ours, theirs)]
            losses = [tf.reduce_sum(tf.sin(result)) for result in results]
        np.testing.assert_allclose(*results, atol=1e-4)
        np.testing.assert_allclose(*[tape.gradient(loss, inputs) for loss in losses], atol=1e-4)
        for name in ("gamma", "beta"):
            gradients = [tape.gradient(loss, getattr(layer, name)) for loss, layer in zip(losses, (ours, theirs), strict=True)]
            np.testing.assert_allclose(*gradients, rtol=1e-3, atol=1e-3)
        np.testing.assert_allclose(ours.moving_mean, theirs.moving_mean, atol=1e-5)

    def test_moving_variance_is_unbiased(self, inputs):
        """n/(n-1), as in PyTorch; Keras' own is biased."""
        ours, theirs = self.pair(inputs)
        ours(inputs, training=True)
        theirs(inputs, training=True)
        values = np.asarray(inputs, np.float64).reshape(-1, 3)
        expected = 0.9 * np.array([1.1, 1.2, 1.3]) + 0.1 * values.var(axis=0, ddof=1)
        np.testing.assert_allclose(ours.moving_variance, expected, rtol=1e-5)
        assert np.abs(np.asarray(theirs.moving_variance) - expected).max() > 1e-3

    def test_inference_frozen_and_masked(self, inputs):
        ours, theirs = self.pair(inputs)
        np.testing.assert_allclose(ours(inputs, training=False), theirs(inputs, training=False), atol=1e-5)
        if inputs.shape.rank == 2:
            mask = tf.constant([True] * 9 + [False] * 7)
            np.testing.assert_allclose(ours(inputs, training=True, mask=mask), theirs(inputs, training=True, mask=mask), atol=1e-4)
            np.testing.assert_allclose(ours.moving_variance, theirs.moving_variance, atol=1e-4)
        ours.trainable = theirs.trainable = False
        before = np.asarray(ours.moving_mean).copy()
        np.testing.assert_allclose(ours(inputs, training=True), theirs(inputs, training=True), atol=1e-5)
        np.testing.assert_array_equal(ours.moving_mean, before)

    def test_mixed_precision(self, inputs):
        ours, theirs = self.pair(inputs, dtype="mixed_bfloat16")
        half = tf.cast(inputs, tf.bfloat16)
        result = ours(half, training=True)
        assert result.dtype == tf.bfloat16
        np.testing.assert_allclose(tf.cast(result, tf.float32), tf.cast(theirs(half, training=True), tf.float32), atol=0.05)

    def test_synchronised_is_the_same_and_keeps_its_digits(self, inputs):
        """Far from zero, where the mean of squares less the square of the mean has no digits left."""
        for offset, tolerance in ((0.0, 1e-5), (1000.0, 1e-3)):
            synchronised, _ = self.pair(inputs, synchronized=True)
            fused, _ = self.pair(inputs)
            with tf.GradientTape(persistent=True) as tape:
                tape.watch(inputs)
                outputs = [layer(inputs + offset, training=True) for layer in (synchronised, fused)]
                losses = [tf.reduce_sum(tf.sin(output)) for output in outputs]
            np.testing.assert_allclose(*outputs, atol=tolerance)
            np.testing.assert_allclose(*[tape.gradient(loss, inputs) for loss in losses], atol=tolerance)
            np.testing.assert_allclose(synchronised.moving_variance, fused.moving_variance, rtol=1e-4)
            np.testing.assert_allclose(synchronised(inputs), fused(inputs), rtol=1e-4, atol=1e-5)

    def test_config_and_refusals(self):
        layer = FusedBatchNormalization.from_config(FusedBatchNormalization(momentum=0.8).get_config())
        assert (layer.momentum, layer.epsilon) == (0.8, 1e-5)
        with pytest.raises(ValueError, match="axis"):
            FusedBatchNormalization(axis=1)
        with pytest.raises(ValueError, match="input_shape"):
            FusedBatchNormalization().build((None, 3, 4))


class TestBatchedInference:
    @staticmethod
    def model() -> keras.Model:
        inputs = keras.Input((3,))
        x = keras.layers.Dropout(0.5)(FusedBatchNormalization()(inputs))
        return keras.Model(inputs, x)

    def test_rows_follow_the_index(self, rng):
        values = rng.normal(size=(50, 3)).astype(np.float32)
        model = self.model()
        order = rng.permutation(50)
        batches = tf.data.Dataset.from_tensor_slices((values[order], order)).batch(7)
        np.testing.assert_allclose(BatchedInference(model).collect(batches, 50), model(values), atol=1e-6)

    @pytest.mark.parametrize("norm", [FusedBatchNormalization(), keras.layers.BatchNormalization(momentum=0.999)])
    def test_settling_moves_the_statistics_alone(self, rng, norm):
        values = rng.normal(5.0, 2.0, size=(64, 3)).astype(np.float32)
        inputs = keras.Input((3,))
        momentum = norm.momentum
        model = keras.Model(inputs, norm(keras.layers.Dense(3)(inputs)))
        kernel = np.asarray(model.layers[1].kernel).copy()
        batches = tf.data.Dataset.from_tensor_slices((values, np.arange(64))).batch(32)
        BatchedInference(model).settle(batches)
        np.testing.assert_array_equal(model.layers[1].kernel, kernel)
        assert norm.momentum == momentum
        outputs = model(values, training=False).numpy()
        np.testing.assert_allclose(outputs.mean(axis=0), 0, atol=0.1)
        np.testing.assert_allclose(outputs.std(axis=0), 1, atol=0.1)

    def test_batch_statistics_are_used_and_nothing_is_changed(self, rng):
        values = rng.normal(5.0, 2.0, size=(64, 3)).astype(np.float32)
        model = self.model()
        before = [np.asarray(variable).copy() for variable in model.variables]
        batches = tf.data.Dataset.from_tensor_slices((values, np.arange(64))).batch(64)
        features = BatchedInference(model).collect(batches, 64, batch_statistics=True)
        normalised = (values - values.mean(axis=0)) / values.std(axis=0)
        kept = features != 0  # dropout
        np.testing.assert_allclose(features[kept], 2 * normalised[kept], atol=1e-3)
        for variable, value in zip(model.variables, before, strict=True):
            np.testing.assert_array_equal(variable, value, err_msg=variable.path)

    @pytest.mark.parametrize(
        ("indices", "message"),
        [
            ([0, 1, 2, 2], "1 missing .*3.*1 repeated .*2"),
            ([0, 1, 2], "1 missing"),
            ([0, 1, 2, 9], "9"),
            ([0, 1, -1, 2], "-1"),
            ([0.0, 1.0, 2.0, 3.0], "float"),
        ],
    )
    def test_refuses_indices_that_are_not_each_once(self, indices, message):
        values = np.zeros((len(indices), 3), np.float32)
        with pytest.raises(ValueError, match=message):
            BatchedInference(self.model()).collect(tf.data.Dataset.from_tensor_slices((values, indices)).batch(2), 4)

    def test_refuses_what_does_not_end_or_is_no_pair(self):
        pairs = tf.data.Dataset.from_tensor_slices((np.zeros((4, 3), np.float32), np.arange(4)))
        inference = BatchedInference(self.model())
        with pytest.raises(ValueError, match="repeated"):
            inference.collect(pairs.batch(2).repeat(), 4)
        with pytest.raises(ValueError, match="must yield pairs"):
            inference.collect(pairs.map(lambda x, i: x).batch(2), 4)
