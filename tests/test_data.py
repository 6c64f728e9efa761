"""Augmentation and pipeline: pure functions of their keys, held to NumPy, PIL and colorsys."""

from __future__ import annotations

import colorsys
import dataclasses

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from sela_tf.data import augment
from sela_tf.data.augment import NUM_DRAWS, Augmentation
from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import inference_batches, training_batches, with_rotations
from sela_tf.data.splits import unbalanced
from sela_tf.data.stores import Arrays, Files
from sela_tf.data.view_statistics import view_statistics
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import load_training_data, training_views

NOTHING = Augmentation(1.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0)


@pytest.fixture
def draws(rng) -> np.ndarray:
    return rng.random((40, NUM_DRAWS)).astype(np.float32)


def image_set(rng, num_images: int = 23, shape: tuple = (9, 7, 3)) -> ImageSet:
    images = rng.integers(0, 256, (num_images, *shape), dtype=np.uint8)
    return ImageSet(name="test", channels=shape[-1], store=Arrays(images), image_size=shape[:2])


class TestAugment:
    def test_the_whole_image_comes_back(self, rng):
        images = rng.integers(0, 256, (4, 9, 7, 3), dtype=np.uint8)
        boxes = augment.centre_boxes(tf.fill([4], 7 / 9), 7 / 9)
        np.testing.assert_allclose(augment.crop_batch(images, tf.range(4), boxes, (9, 7)), images, atol=0.01)
        for i in range(4):
            np.testing.assert_allclose(augment.crop_one(images[i], boxes[i], (9, 7)), images[i], atol=1e-3)

    def test_a_reversed_box_is_a_flip(self, rng):
        images = rng.integers(0, 256, (2, 8, 8, 1), dtype=np.uint8)
        box = tf.constant([[0.0, 1.0, 1.0, 0.0]] * 2)
        np.testing.assert_allclose(augment.crop_batch(images, tf.range(2), box, (8, 8)), images[:, :, ::-1], atol=0.01)
        np.testing.assert_allclose(augment.crop_one(images[0], box[0], (8, 8)), images[0, :, ::-1], atol=1e-3)

    def test_crops_sample_between_pixel_centres(self, rng):
        """Bilinear, half-pixel centres, border values repeated: NumPy's own interpolation along each axis."""
        image = rng.integers(0, 256, (1, 12, 10, 1), dtype=np.uint8)
        top, left, bottom, right = box = (0.2, 0.3, 0.9, 0.8)
        result = augment.crop_batch(image, tf.range(1), tf.constant([box]), (6, 5))[0, :, :, 0]
        ys = np.clip((top + (np.arange(6) + 0.5) / 6 * (bottom - top)) * 12 - 0.5, 0, 11)
        xs = np.clip((left + (np.arange(5) + 0.5) / 5 * (right - left)) * 10 - 0.5, 0, 9)
        rows = np.stack([np.interp(xs, np.arange(10), row) for row in image[0, :, :, 0]])
        expected = np.stack([np.interp(ys, np.arange(12), column) for column in rows.T], axis=1)
        np.testing.assert_allclose(result, expected, atol=0.02)

    @pytest.mark.parametrize("aspect", [1.0, 2.0, 0.4])
    def test_boxes_keep_the_share_of_the_area_and_the_ratio(self, rng, aspect):
        draws = rng.random((5000, NUM_DRAWS)).astype(np.float32)
        top, left, bottom, right = augment.crop_boxes(draws, aspect, Augmentation(crop_scale=0.3), target_aspect=1.0).numpy().T
        width, height = np.abs(right - left), bottom - top
        assert min(top.min(), left.min(), right.min()) >= 0
        assert max(bottom.max(), left.max(), right.max()) <= 1 + 1e-6
        assert (width * height).max() <= 1 + 1e-6
        whole = (width < 1 - 1e-6) & (height < 1 - 1e-6)  # not cut off at the border
        assert (width * height)[whole].min() >= 0.3 - 1e-5
        ratio = (width * aspect / height)[whole]
        assert 3 / 4 - 1e-3 <= ratio.min() < 0.8
        assert 1.25 < ratio.max() <= 4 / 3 + 1e-3
        assert (left > right).mean() == pytest.approx(0.5, abs=0.03)

    def test_nothing_is_nothing(self, rng, draws):
        images = rng.random((40, 6, 6, 3)).astype(np.float32) * 255
        np.testing.assert_array_equal(augment.recolour(tf.constant(images), draws, NOTHING), images)
        boxes = augment.crop_boxes(draws, 1.5, NOTHING, target_aspect=1.5)
        np.testing.assert_allclose(boxes, np.tile([0, 0, 1, 1], (40, 1)), atol=1e-6)

    @pytest.mark.parametrize("shape", [(24, 48, 3), (48, 24, 3)])
    @pytest.mark.parametrize("in_memory", [True, False])
    def test_without_crops_training_sees_the_clean_view(self, rng, tmp_path, shape, in_memory):
        """A disc in an oblong image stays one; larger than the image's shorter side, it is cut as the clean view cuts it."""
        y, x = np.mgrid[: shape[0], : shape[1]] - (np.array(shape[:2]) - 1)[:, np.newaxis, np.newaxis] / 2
        disc = np.where(np.hypot(x, y) < 8, 255, 0).astype(np.uint8)
        pixels = np.repeat(disc[np.newaxis, :, :, np.newaxis], 3, axis=-1)
        images = ImageSet(name="disc", channels=3, store=Arrays(pixels), image_size=shape[:2])
        if not in_memory:
            Image.fromarray(pixels[0]).save(tmp_path / "disc.png")
            images = ImageSet(name="disc", channels=3, store=Files((str(tmp_path / "disc.png"),)), names=("disc.png",))
        ((clean, _),) = inference_batches(images, size=(24, 24), batch_size=1)
        for number in range(2):
            views = inference_batches(images, size=(24, 24), batch_size=1, augmentation=NOTHING, pass_number=number)
            np.testing.assert_allclose(next(iter(views))[0], clean, atol=0.05)
        shown = clean.numpy()[0, :, :, 0] > 127
        assert shown.any(axis=0).sum() == shown.any(axis=1).sum() == 16

    def test_boxes_of_whole_images_have_the_bits_of_before(self, rng):
        """Boxes are those computed when they knew nothing of the view; one shape in seven does not round to 1."""
        draws = tf.constant(rng.random((40, NUM_DRAWS)).astype(np.float32))
        for height, width in [(8, 8), (2, 41), (28, 20), (2, 47), (9, 7)]:
            aspect = tf.fill([40], tf.constant(width / height, tf.float32))
            side = [tf.minimum(1.0, tf.sqrt(1.0 / aspect * aspect)), tf.minimum(1.0, tf.sqrt(1.0 * aspect / aspect))]
            top, left = (draws[:, column] * (1.0 - length) for column, length in zip((2, 3), side, strict=True))
            boxes = augment.crop_boxes(draws, aspect, NOTHING, target_aspect=width / height)
            np.testing.assert_array_equal(boxes, tf.stack([top, left, top + side[0], left + side[1]], axis=1))

    def test_brightness_and_contrast(self, rng, draws):
        images = rng.random((40, 6, 6, 1)).astype(np.float32) * 255
        factor = 1 + 0.4 * (2 * draws[:, 5, None, None, None] - 1)
        bright = augment.recolour(tf.constant(images), draws, NOTHING._replace(brightness=0.4))
        np.testing.assert_allclose(bright, np.clip(images * factor, 0, 255), rtol=1e-5)
        factor = 1 + 0.4 * (2 * draws[:, 6, None, None, None] - 1)
        mean = images.mean(axis=(1, 2, 3), keepdims=True)
        contrast = augment.recolour(tf.constant(images), draws, NOTHING._replace(contrast=0.4))
        np.testing.assert_allclose(contrast, np.clip(mean + factor * (images - mean), 0, 255), rtol=1e-3, atol=1e-3)

    def test_hue_is_colorsys(self, rng, draws):
        images = rng.random((40, 2, 2, 3)).astype(np.float32) * 255
        turned = augment.recolour(tf.constant(images), draws, NOTHING._replace(hue=0.3)).numpy()
        for image, result, draw in zip(images, turned, draws, strict=True):
            hue, saturation, value = colorsys.rgb_to_hsv(*(image[0, 0] / 255))
            expected = colorsys.hsv_to_rgb((hue + 0.3 * (2 * draw[8] - 1)) % 1.0, saturation, value)
            np.testing.assert_allclose(result[0, 0] / 255, expected, atol=1e-3)

    def test_grayscale_and_saturation_do_what_they_say(self, rng):
        draws = rng.random((4000, NUM_DRAWS)).astype(np.float32)
        images = tf.constant(rng.random((4000, 2, 2, 3)).astype(np.float32) * 255)
        gray = augment.recolour(images, draws, NOTHING._replace(grayscale_probability=0.2)).numpy()
        is_gray = (np.ptp(gray, axis=3) < 1e-3).all(axis=(1, 2))
        assert is_gray.mean() == pytest.approx(0.2, abs=0.03)
        np.testing.assert_array_equal(gray[~is_gray], images.numpy()[~is_gray])
        saturated = augment.recolour(images, draws, NOTHING._replace(saturation=1.0)).numpy()
        luma = images.numpy() @ np.array([0.299, 0.587, 0.114])
        factor = 2 * draws[:, 7, None, None, None]
        np.testing.assert_allclose(saturated, np.clip(luma[..., None] + factor * (images - luma[..., None]), 0, 255), atol=0.01)

    def test_blur_is_pils_gaussian(self, rng):
        images = rng.integers(0, 256, (1, 60, 60, 1), dtype=np.uint8).astype(np.float32)
        draws = np.full((1, NUM_DRAWS), 0.5, np.float32)
        blurred = augment.recolour(tf.constant(images), draws, NOTHING._replace(blur_probability=1.0)).numpy()[0, :, :, 0]
        offsets = np.arange(-3, 4)
        kernel = np.exp(-0.5 * (offsets / 1.05) ** 2)
        kernel /= kernel.sum()
        padded = np.pad(images[0, :, :, 0], 3, mode="symmetric")
        expected = np.apply_along_axis(
            np.convolve, 0, np.apply_along_axis(np.convolve, 1, padded, kernel, "valid"), kernel, "valid"
        )
        np.testing.assert_allclose(blurred, expected, atol=0.01)

    def test_gray_and_colour_take_the_same_view(self, rng, draws):
        """A gray image stored in three channels comes out as it does in one."""
        gray = tf.constant(rng.random((40, 6, 6, 1)).astype(np.float32) * 255)
        strong = Augmentation(blur_probability=0.5)
        one = augment.recolour(gray, draws, strong)
        three = augment.recolour(tf.repeat(gray, 3, axis=-1), draws, strong)
        np.testing.assert_allclose(three, tf.repeat(one, 3, axis=-1), atol=0.05)


@pytest.mark.parametrize(("shape", "across"), [((32, 32, 3), 4), ((32, 40, 3), 12)])
def test_ten_crops_are_the_corners_the_centre_and_their_mirror_images(rng, shape, across):
    """28 of 32 pixels, as 224 of 256."""
    images = rng.integers(0, 256, (3, *shape), dtype=np.uint8)
    corners = [(0, 0), (0, across), (4, 0), (4, across), (2, across // 2)]
    for number in range(augment.NUM_CROPS):
        boxes = augment.evaluation_crop_boxes(tf.fill([3], shape[1] / shape[0]), 1.0, number)
        top, left = corners[number % 5]
        expected = images[:, top : top + 28, left : left + 28]
        expected = expected if number < 5 else expected[:, :, ::-1]
        np.testing.assert_allclose(augment.crop_batch(images, tf.range(3), boxes, (28, 28)), expected, atol=0.05)
        np.testing.assert_allclose(augment.crop_one(images[1], boxes[1], (28, 28)), expected[1], atol=1e-3)


@pytest.mark.parametrize(
    ("share", "replicas", "turned"),
    # which images each of the three turns shows
    [
        (1.0, 1, [[0, 1, 2, 3, 4, 5, 6, 7]] * 3),
        (0.25, 1, [[0, 1], [2, 3], [4, 5]]),
        (0.01, 1, [[0], [1], [2]]),
        (0.5, 2, [[0, 1, 4, 5], [2, 3, 6, 7], [0, 1, 4, 5]]),
    ],
)
def test_rotations(rng, share, replicas, turned):
    images, indices = rng.random((8, 5, 5, 1)).astype(np.float32), np.arange(10, 18)
    batches = tf.data.Dataset.from_tensors((images, indices))
    ((views, targets, weights),) = with_rotations(batches, share=share, replicas=replicas)
    quarters = targets["rotation"].numpy()
    shown = [(targets["heads"].numpy()[quarters == quarter] - 10).tolist() for quarter in range(4)]
    assert shown == [list(range(8)), *turned]
    for view, index, quarter in zip(views.numpy(), targets["heads"].numpy(), quarters, strict=True):
        np.testing.assert_array_equal(view, np.rot90(images[index - 10], quarter))
    # Keras takes the mean over all views: of the heads that is the mean over the images, of the rotation that over four equal turns
    count = len(views)
    np.testing.assert_allclose(weights["heads"].numpy() / count, np.where(quarters == 0, 1 / 8, 0), rtol=1e-6)
    for quarter in range(4):
        assert weights["rotation"].numpy()[quarters == quarter].sum() / count == pytest.approx(1 / 4)
    # each replica's half has the same mixture
    halves = np.split(quarters, replicas)
    assert all((half == halves[0]).all() for half in halves)


def test_a_runs_views_are_turned_as_its_settings_say():
    config, data = load_training_data(SelaConfig(dataset="digits", rotation=True, rotation_share=0.25))
    (batch,) = training_views(config, data, batch_size=16, first_step=0, last_step=1, replicas=2)
    # of each replica's eight images two a turn
    assert batch[1]["rotation"].numpy().tolist() == 2 * [*[0] * 8, *[1] * 2, *[2] * 2, *[3] * 2]


class TestUnbalanced:
    @pytest.fixture
    def images(self, rng):
        classes = rng.permutation(np.repeat(np.arange(5), 40))
        return dataclasses.replace(image_set(rng, 200), classes=classes)

    def test_shares_of_the_classes(self, images):
        assert np.bincount(unbalanced(images, "light").classes).tolist() == [40, 40, 40, 40, 20]
        heavy = unbalanced(images, "heavy", seed=3)
        assert np.bincount(heavy.classes).tolist() == [40, 32, 24, 16, 8]
        np.testing.assert_array_equal(heavy.images, unbalanced(images, "heavy", seed=3).images)
        assert not np.array_equal(heavy.images, unbalanced(images, "heavy", seed=4).images)

    def test_images_and_classes_stay_together(self, images):
        class_of = {image.tobytes(): label for image, label in zip(images.images, images.classes, strict=True)}
        heavy = unbalanced(images, "heavy")
        assert [class_of[image.tobytes()] for image in heavy.images] == heavy.classes.tolist()

    def test_without_classes(self, rng):
        with pytest.raises(SourceError, match="needs class labels"):
            unbalanced(image_set(rng), "light")


class TestPipeline:
    settings = {"size": (8, 8), "augmentation": Augmentation(), "batch_size": 5, "seed": 0}

    def steps(self, images, first, last, **options):
        dataset = training_batches(images, first_step=first, last_step=last, **{**self.settings, **options})
        return [(image.numpy(), index.numpy()) for image, index in dataset]

    def test_is_a_function_of_the_step(self, rng):
        images = image_set(rng)
        whole = self.steps(images, 0, 12)
        assert len(whole) == 12
        for first in (4, 9):
            for (image, index), (again, same) in zip(whole[first:], self.steps(images, first, 12), strict=True):
                np.testing.assert_array_equal(image, again)
                np.testing.assert_array_equal(index, same)

    def test_epochs_have_permutations_and_views_of_their_own(self, rng):
        images = image_set(rng, 20)
        indices = np.concatenate([index for _, index in self.steps(images, 0, 8)]).reshape(2, 20)
        for epoch in indices:
            assert sorted(epoch) == list(range(20))
        assert (indices[0] != indices[1]).any()
        views = {i: [] for i in range(20)}
        for image, index in self.steps(images, 0, 8):
            for view, i in zip(image, index, strict=True):
                views[i].append(view)
        assert all((first != second).any() for first, second in views.values())

    def test_an_images_view_does_not_depend_on_its_batch(self, rng):
        images = image_set(rng, 20)
        by_index = [
            {i: v for x, index in self.steps(images, 0, n, batch_size=20 // n) for v, i in zip(x, index, strict=True)}
            for n in (4, 2)
        ]
        for i in range(20):
            np.testing.assert_allclose(by_index[0][i], by_index[1][i], atol=0.05)

    def test_seeds_differ_and_labelling_differs_from_training(self, rng):
        images = image_set(rng, 20)
        first, second = self.steps(images, 0, 4), self.steps(images, 0, 4, seed=1)
        assert any((a[1] != b[1]).any() for a, b in zip(first, second, strict=True))
        passes = [
            {i: v for x, index in inference_batches(images, size=(8, 8), batch_size=20, augmentation=Augmentation(), pass_number=n)
             for v, i in zip(x.numpy(), index.numpy(), strict=True)}
            for n in (0, 1, 0)
        ]  # fmt: skip
        training = {i: v for x, index in first for v, i in zip(x, index, strict=True)}
        assert all((passes[0][i] == passes[2][i]).all() for i in range(20))
        assert all((passes[0][i] != passes[1][i]).any() and (passes[0][i] != training[i]).any() for i in range(20))

    @pytest.mark.parametrize(("num_images", "batch_size"), [(23, 10), (23, 22), (10, 10), (3, 10)])
    def test_inference_has_each_image_once_in_batches_as_equal_as_can_be(self, rng, num_images, batch_size):
        images = image_set(rng, num_images)
        seen = [(x.numpy(), i.numpy()) for x, i in inference_batches(images, size=(9, 7), batch_size=batch_size)]
        indices = np.concatenate([index for _, index in seen])
        assert sorted(indices) == list(range(num_images))
        sizes = [len(index) for _, index in seen]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        np.testing.assert_array_equal(np.concatenate([view for view, _ in seen]), images.images[indices])

    def test_files_and_arrays_give_the_same_views(self, rng, tmp_path):
        images = image_set(rng, 12, (16, 16, 3))
        paths = []
        for i, image in enumerate(images.images):
            Image.fromarray(image).save(tmp_path / f"{i:02d}.png")
            paths.append(str(tmp_path / f"{i:02d}.png"))
        files = ImageSet(name="files", channels=3, store=Files(tuple(paths)), names=tuple(paths))
        for size in ((16, 16), (9, 7), (7, 9), (30, 30)):
            views = []
            for source in (images, files):
                ((batch, indices),) = inference_batches(source, size=size, batch_size=12)
                views.append(batch.numpy()[np.argsort(indices)])
            np.testing.assert_allclose(*views, atol=1e-3)
            np.testing.assert_allclose(views[0], [augment.clean_view(image, size) for image in images.images], atol=1e-3)
        # whole-pixel crops agree too, up to the antialiasing of one path
        flip = NOTHING._replace(flip_probability=1.0)
        views = [next(iter(inference_batches(s, size=(16, 16), batch_size=12, augmentation=flip))) for s in (images, files)]
        np.testing.assert_allclose(views[0][0], views[1][0], atol=0.05)

    def test_view_statistics(self, rng):
        images = image_set(rng, 30)
        mean, variance, *_ = view_statistics(images, size=(9, 7))
        values = images.images.reshape(-1, 3).astype(np.float64)
        np.testing.assert_allclose(mean, values.mean(axis=0))
        np.testing.assert_allclose(variance, values.var(axis=0))
        black = ImageSet(name="black", channels=1, store=Arrays(np.zeros((4, 8, 8, 1), np.uint8)))
        assert view_statistics(black, size=(8, 8)).variance.tolist() == [1.0]
