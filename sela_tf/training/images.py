"""The images of a run: loaded, held out, checked against the settings, and drawn as training views."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tqdm import tqdm

from sela_tf.compat.activity import Activity
from sela_tf.data.augment import Augmentation
from sela_tf.data.decoded_files import keep_decoded
from sela_tf.data.image_set import ImageSet, Splits
from sela_tf.data.left_out import ImageNote
from sela_tf.data.pipeline import Replicas, training_batches, with_rotations
from sela_tf.data.pixel_rules import OLD_RULES, PixelRules
from sela_tf.data.rules_of_images import make_rules, saturation_in_words, with_rules
from sela_tf.data.sources import Outline, SourceOptions, load_source, outline_source
from sela_tf.data.splits import hold_out, match_classes, match_input, unbalanced
from sela_tf.data.stores import Unread
from sela_tf.data.view_statistics import view_statistics
from sela_tf.runs.network import NetworkDescription
from sela_tf.settings.choices import Choice, ImagesSeen, choices_table, choose, contradictions
from sela_tf.settings.fields import CHOSEN, ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.image_checks import check_kind, check_settings_suit, check_shape, largest_side_of_use, network_size
from sela_tf.training.orientation import orientation_of


class Data(NamedTuple):
    """The images of a run, their size as the network sees it, and their statistics."""

    train: ImageSet
    held_out: ImageSet
    size: tuple[int, ...]
    """(height, width) that the network sees; () of vectors."""
    mean: np.ndarray
    variance: np.ndarray
    left_out: tuple[ImageSet, ...] = ()
    """Images of the source that are neither trained on nor held out; only names, rows and classes are kept of them."""
    rejected: tuple[ImageNote, ...] = ()
    """Images of the sources that cannot be read."""


def load_data(config: SelaConfig, rules: PixelRules | None = None) -> Data:
    """Loads the images that a run trains on, those that are held out, their size and their statistics.

    Args:
        config: the settings of the run, as its flags.cfg has them.
        rules: the pixel rules of a finished run; None for those that a run makes of its training images.

    Raises:
        ValueError: they cannot be loaded (SourceError), or their size is not known (ConfigError).
    """
    with Activity("reading images"):
        return _split_and_match(config, {}, rules)


def load_training_data(
    config: SelaConfig,
    *,
    replicas: int = 1,
    given_by: Mapping[str, tuple[Any, str]] | None = None,
    network: NetworkDescription | None = None,
) -> tuple[SelaConfig, Data]:
    """Loads images to train on, and chooses the settings that are not given so that they fit the images.

    What cannot be trained on is refused before anything is decoded, and what hardly can is said.

    Args:
        config: the settings.
        replicas: devices that a batch is shared by.
        given_by: values that other files ask for, see `choose`.
        network: the network of the run that is continued, whose pixel rules and statistics hold; None for those of these images.

    Returns:
        The settings, all of which have values, and the images.

    Raises:
        ValueError: the images cannot be loaded (SourceError), or the settings do not fit the images (ConfigError).
    """
    rules = None if network is None else network.pixel_rules
    with Activity("reading images"):
        outline = outline_source(config.dataset, _source_options(config, rules))
        splits = None
        if outline is None:
            splits = _load_source(config, "dataset", rules)
            outline = Outline(splits)
        if network is not None:
            check_kind(outline.splits.train, network, config)
            shape = network.image_shape
            if outline.splits.train.image_size is None and not config.image_size and len(shape) == 3 and shape[0] == shape[1]:
                # The images of the earlier run had one size, and some of these have another.
                config = dataclasses.replace(config, image_size=shape[0])
        _check_outline(choose(config, _images_seen(config, outline.splits, replicas), given_by)[0], outline)
        splits = splits or _load_source(config, "dataset", rules)
        seen = _images_seen(config, splits, replicas)
        data = _split_and_match(choose(config, seen, given_by)[0], {"dataset": splits}, rules)
        if network is not None:
            check_shape((*data.size, data.train.channels), network, config)
            data = data._replace(mean=np.array(network.mean), variance=np.array(network.variance))
        if CHOSEN in (config.flip_probability, config.rotation) and len(data.size) == 2:
            told = orientation_of(data.train, size=data.size, seed=config.seed)
            seen = seen._replace(told_mirrored=told.mirrored, told_turned=told.turned)
        config = _tell_choices(*choose(config, seen, given_by))
    check_settings_suit(config, data.train, data.size)
    return config, data


def settings_by_outline(
    config: SelaConfig, *, replicas: int = 1, given_by: Mapping[str, tuple[Any, str]] | None = None
) -> SelaConfig:
    """Returns settings as `load_training_data` chooses them, for a source whose outline tells all that the choice depends on.

    Raises:
        ValueError: the images are not there (SourceError), or have no outline.
    """
    # Nothing is loaded, so that no memory is needed.
    outline = outline_source(config.dataset, _source_options(config)._replace(memory_limit=2**62))
    if outline is None:
        raise ConfigError(f"`dataset={config.dataset}` has to be loaded")
    return _tell_choices(*choose(config, _images_seen(config, outline.splits, replicas), given_by))


def _tell_choices(config: SelaConfig, choices: list[Choice]) -> SelaConfig:
    """Prints which settings were chosen and why; returns the settings."""
    if choices:
        tell(f"chosen from the images; any of these may be given instead:\n{choices_table(choices)}")
    return config


def _images_seen(config: SelaConfig, splits: Splits, replicas: int) -> ImagesSeen:
    """Returns what the choice of settings depends on."""
    train = splits.train
    return ImagesSeen(
        num_images=len(train),
        has_held_out=bool(config.eval_dataset) or splits.eval is not None,
        side=min(train.image_size, default=0) if train.image_size is not None else train.median_side,
        have_one_size=train.image_size is not None,
        channels=train.channels,
        is_vectors=train.is_vectors,
        replicas=replicas,
        is_square=len(set(train.image_size or (0, 1))) == 1,
    )


def tell(line: str) -> None:
    """Prints a line at once, also where the output is a file or a pipe; above the line of an `Activity`, if there is one."""
    tqdm.write(line)
    sys.stdout.flush()


def _source_options(config: SelaConfig, rules: PixelRules | None = None) -> SourceOptions:
    """Returns the options of the run's sources; without `rules`, they are still to be made, but for an older run."""
    return SourceOptions(
        data_dir=config.data_dir,
        download=config.download,
        use_classes=config.classes == "auto",
        max_rejected=config.max_rejected,
        class_level=config.class_level,
        memory_limit=int(config.memory_limit * 2**30),
        cache_dir=config.cache_dir,
        rules=OLD_RULES if rules is None and config.background == "old" else rules,
    )


def _load_source(config: SelaConfig, setting: str, rules: PixelRules | None = None) -> Splits:
    """Loads the source that the setting "dataset" or "eval_dataset" names."""
    return load_source(getattr(config, setting), _source_options(config, rules), setting=setting, tell=tell)


def _check_outline(config: SelaConfig, outline: Outline) -> None:
    """Holds the settings to what is known of the training images without decoding any, and says what hardly fits.

    Raises:
        ValueError: the settings do not fit (ConfigError), or the images are not there (SourceError).
    """
    train, held_out = outline.splits.train, outline.splits.eval
    # Splitting images that are in memory would copy them.
    train = dataclasses.replace(train, store=Unread(len(train)))
    if not config.eval_dataset and held_out is None:
        train, _ = hold_out(train, config.eval_fraction)
    if config.imbalance != "none" and train.classes is not None:
        train = unbalanced(train, config.imbalance, seed=config.seed)
    is_known = outline.sizes_are_known or train.image_size is not None or config.image_size
    check_settings_suit(config, train, network_size(config, train) if is_known else None)
    for line in contradictions(config, len(train)):
        tell(line)


def _split_and_match(config: SelaConfig, loaded: Mapping[str, Splits], rules: PixelRules | None = None) -> Data:
    """Does what `load_data` says; some sources may have been loaded before, by the name of their setting."""
    splits = loaded.get("dataset") or _load_source(config, "dataset", rules)
    report, rejected = list(splits.report), splits.rejected
    if config.eval_dataset:
        other = _load_source(config, "eval_dataset", rules)
        report += other.report
        rejected += tuple(each for each in other.rejected if each not in rejected)
        train, held_out = splits.train, other.eval or other.train
    elif splits.eval is not None:
        train, held_out = splits.train, splits.eval
    else:
        train, held_out = hold_out(splits.train, config.eval_fraction)
    train, held_out = match_classes(train, held_out)
    if train.classes is not None and len(np.unique(train.classes)) < 2:
        report.append("all training images have the same class label, so class labels are not used")
        train = dataclasses.replace(train, classes=None, class_names=None)
    left_out: tuple[ImageSet, ...] = ()
    if config.imbalance != "none":
        whole = train
        train = unbalanced(whole, config.imbalance, seed=config.seed)
        gone = np.flatnonzero(~np.isin(whole.rows, train.rows))
        left_out = (dataclasses.replace(whole, store=Unread(len(whole))).take(gone),)
        report.append(f"`imbalance={config.imbalance}`: {len(train)} of {len(whole)} training images are kept")
    for line in report:
        tell(line)
    size = network_size(config, train)
    if rules is None:
        rules = make_rules(train, config.background, shorter_side=largest_side_of_use(config, size), seed=config.seed)
    ruled = with_rules(Splits(train, held_out), rules, memory_limit=int(config.memory_limit * 2**30))
    train, held_out = ruled.train, ruled.eval or held_out
    held_out = match_input(held_out, (*size, train.channels))
    if config.cache_images:
        limit = int(config.memory_limit * 2**30)
        train, held_out = keep_decoded((train, held_out), memory_limit=limit, cache_dir=config.cache_dir, tell=tell)
    found = view_statistics(train, size=size, seed=config.seed)
    for line in (saturation_in_words(held_out), found.in_words()):
        if line:
            tell(line)
    return Data(train, held_out, size, found.mean, found.variance, left_out, rejected)


def shape_in_words(data: Data) -> str:
    """Returns the shape of the network's input in words, such as "28 x 28 x 1"."""
    return f"vectors of {data.train.channels}" if data.train.is_vectors else " x ".join(map(str, (*data.size, data.train.channels)))


def augmentation(config: SelaConfig) -> Augmentation:
    """Returns the strengths of the training views, from the settings of the same names."""
    return Augmentation(**{name: getattr(config, name) for name in Augmentation._fields})


def training_views(
    config: SelaConfig,
    data: Data,
    *,
    batch_size: int,
    first_step: int,
    last_step: int,
    replicas: int = 1,
    own: Replicas | None = None,
) -> tf.data.Dataset:
    """Returns the batches that the steps from `first_step` up to, not including, `last_step` train on.

    They are whole batches, each for so many `replicas`; or where `own` are given the parts of these.
    """
    batches = training_batches(
        data.train,
        size=data.size,
        augmentation=augmentation(config),
        batch_size=batch_size,
        seed=config.seed,
        first_step=first_step,
        last_step=last_step,
        replicas=own,
    )
    if not config.rotation:
        return batches
    return with_rotations(batches, share=config.rotation_share, replicas=1 if own else replicas)
