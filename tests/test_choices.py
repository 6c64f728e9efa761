"""Settings chosen from the images, and those that contradict them."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest

from sela_tf.data.sources import load_source
from sela_tf.data.splits import is_held_out
from sela_tf.data.stores import Arrays
from sela_tf.settings.choices import IMAGES_PER_CLUSTER, ImagesSeen, choices_table, choose, contradictions
from sela_tf.settings.fields import CHOSEN, ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.orientation import orientation_of

SIDES = (8, 28, 32, 48, 63, 64, 65, 224, 3000)
COUNTS = (20, 150, 1797, 3598, 19_152, 60_000, 1_281_167)


def seen(num_images=4000, side=100, *, have_one_size=False, channels=3, has_held_out=False, **others) -> ImagesSeen:
    return ImagesSeen(num_images, has_held_out, side, have_one_size, channels, **others)


@pytest.mark.parametrize("num_images", COUNTS)
@pytest.mark.parametrize("side", SIDES)
def test_they_suit_the_images(num_images, side):
    for have_one_size in (True, False):
        for channels in (1, 3):
            for replicas in (1, 2, 8):
                images = seen(num_images, side, have_one_size=have_one_size, channels=channels, replicas=replicas)
                config, choices = choose(SelaConfig(dataset="x"), images)
                assert all(getattr(config, field.name) is not CHOSEN for field in dataclasses.fields(config))
                assert all(choice.reason and getattr(config, choice.name) == choice.value for choice in choices)
                train = num_images * (1 - config.eval_fraction)
                held_out = num_images - train
                assert held_out >= min(950, 0.2 * num_images)
                assert train / config.num_clusters >= min(IMAGES_PER_CLUSTER, train / 2)
                assert config.batch_size % replicas == 0
                assert config.batch_size <= max(train, 2 * replicas)
                steps = config.epochs * (train // config.batch_size)
                assert steps >= min(5000, train) or config.batch_size > train
                assert (config.saturation > 0) == (channels == 3)
                own = config.image_size or side
                assert own <= max(side, 8)
                assert (config.backbone == "resnet18") == (own >= 64)
                assert contradictions(config, int(train)) == [] or num_images == 20


def test_steps_are_thousands_and_no_more_for_more_images():
    for num_images in COUNTS[1:-1]:
        config, _ = choose(SelaConfig(dataset="x"), seen(num_images))
        train = round(num_images * (1 - config.eval_fraction))
        assert 5000 <= config.epochs * (train // config.batch_size) <= 8000


@pytest.mark.parametrize(("side", "turned", "steps"), [(32, 0.5, 6000), (32, 0.9, 4000), (64, 0.5, 5000), (200, 0.9, 3333)])
def test_what_takes_longer_has_fewer_steps(side, turned, steps):
    config, _ = choose(SelaConfig(dataset="x"), seen(4000, side, is_square=True, told_turned=turned))
    per_epoch = 3000 // config.batch_size
    assert steps <= config.epochs * per_epoch < steps + per_epoch


def test_given_settings_stay():
    given = {"image_size": 32, "backbone": "alexnet", "num_clusters": 7, "epochs": 3, "batch_size": 32, "saturation": 0.0}
    config, choices = choose(SelaConfig(dataset="x", **given), seen())
    assert {name: getattr(config, name) for name in given} == given
    assert not {choice.name for choice in choices} & set(given)
    assert choose(config, seen(100, 8, channels=1)) == (config, [])


def test_other_files_may_decide():
    config, choices = choose(SelaConfig(dataset="x", labels_from="y"), seen(), {"num_heads": (3, "as those have them")})
    assert (config.num_heads, config.num_relabellings) == (3, 0)
    assert [choice.reason for choice in choices if choice.name == "num_heads"] == ["as those have them"]


@pytest.mark.parametrize(("accuracy", "probability"), [(0.52, 0.5), (0.6, 0.5), (0.8, 0.0), (0.93, 0.0)])
def test_images_that_tell_left_from_right_are_not_flipped(accuracy, probability):
    config, choices = choose(SelaConfig(dataset="x"), seen(told_mirrored=accuracy))
    assert config.flip_probability == probability
    assert f"(their neighbours tell {accuracy:.0%}; the limit is 65%)" in next(
        each.reason for each in choices if each.name == "flip_probability"
    )


@pytest.mark.parametrize(("accuracy", "turns"), [(0.55, False), (0.75, True)])
def test_turns_are_learned_where_they_can_be_told(accuracy, turns):
    for images in (seen(told_turned=accuracy), seen(side=32, have_one_size=True, is_square=True, told_turned=accuracy)):
        config, _ = choose(SelaConfig(dataset="x"), images)
        assert (config.rotation, config.rotation_share) == (turns, 0.25 if turns else 1.0)
    for images in (
        seen(side=32, have_one_size=True, told_turned=accuracy),
        seen(side=0, channels=9, is_vectors=True, told_turned=accuracy),
    ):
        assert choose(SelaConfig(dataset="x", image_size=0), images)[0].rotation is False


def test_changed_images_are_told_where_they_can_be(rng):
    """Digits are, noise is not, and images that are their own mirror image cannot be told to be mirrored."""
    digits = load_source("digits").train
    assert min(orientation_of(digits, size=(8, 8))) > 0.85
    noise = rng.integers(0, 256, digits.images.shape, dtype=np.uint8)
    symmetric = np.maximum(digits.images, digits.images[:, :, ::-1])
    for pixels, turned in ((noise, 0.5), (symmetric, 1.0)):
        told = orientation_of(dataclasses.replace(digits, store=Arrays(pixels)), size=(8, 8))
        assert told.mirrored == pytest.approx(0.5, abs=0.06)
        assert told.turned == pytest.approx(turned, abs=0.06)
    assert orientation_of(digits.take(np.arange(8)), size=(8, 8)) == (0.5, 0.5)


def test_a_picture_in_several_colours_tells_of_no_other(rng):
    """Four near copies of each of many pictures, none of which has a right way up."""
    pictures = rng.integers(0, 256, (300, 8, 8, 1))
    copies = np.clip(np.repeat(pictures, 4, axis=0) + rng.integers(-9, 10, (1200, 1, 1, 1)), 0, 255).astype(np.uint8)
    images = dataclasses.replace(load_source("digits").train, store=Arrays(copies), classes=None)
    for told in orientation_of(images, size=(8, 8)):
        assert told == pytest.approx(0.5, abs=0.06)


def test_vectors_have_a_network_and_views_of_their_own():
    config, _ = choose(SelaConfig(dataset="x"), seen(5000, 0, channels=17, is_vectors=True, have_one_size=True))
    assert (config.backbone, config.image_size, config.saturation) == ("mlp", 0, 0.0)
    assert config.feature_noise > 0


@pytest.mark.parametrize("num_images", [10, 23, 40, 61, 88, 130, 200])
def test_a_batch_fits_what_the_hash_leaves(num_images):
    names = [f"img_{i:03d}.jpg" for i in range(num_images)]
    config, _ = choose(SelaConfig(dataset="x"), seen(num_images))
    left = sum(not is_held_out(name, config.eval_fraction) for name in names)
    assert config.batch_size <= left


def test_a_split_is_taken_as_it_is():
    config, _ = choose(SelaConfig(dataset="x"), seen(3000, has_held_out=True))
    assert config.num_clusters == 3000 // IMAGES_PER_CLUSTER


@pytest.mark.parametrize(
    ("settings", "train", "message"),
    [
        ({"num_clusters": 3000, "epochs": 400, "batch_size": 64}, 3598, r"`num_clusters=3000` leaves 1.2 .*`num_clusters=119` leaves 30"),
        ({"num_clusters": 10, "epochs": 10, "batch_size": 256}, 3598, r"are 140 steps.*`epochs=\d+` are \d+"),
        ({"num_clusters": 2, "epochs": 100, "batch_size": 8}, 50, "50 training images are too few"),
        ({"num_clusters": 100, "epochs": 100, "batch_size": 64}, 3598, None),
    ],
)  # fmt: skip
def test_what_hardly_fits_is_said(settings, train, message):
    lines = contradictions(choose(SelaConfig(dataset="x", **settings), seen())[0], train)
    assert len(lines) == (message is not None)
    assert all(re.search(message, line) for line in lines)


def test_the_table_has_a_line_for_each():
    _, choices = choose(SelaConfig(dataset="x"), seen())
    lines = choices_table(choices).splitlines()
    assert [line.split("=")[0].strip() for line in lines] == [choice.name for choice in choices]
    assert len({line.index(choice.reason) for line, choice in zip(lines, choices, strict=True)}) == 1


def test_settings_that_are_chosen_are_checked_too():
    with pytest.raises(ConfigError, match="`num_clusters` must be at least 2"):
        SelaConfig(dataset="x", num_clusters=1)
