"""The images that `python -m sela_tf.label` labels."""

from __future__ import annotations

import dataclasses

from sela_tf.compat.activity import Activity
from sela_tf.data.image_set import ImageSet
from sela_tf.data.left_out import ImageNote
from sela_tf.data.pixel_rules import PixelRules
from sela_tf.data.rules_of_images import saturation_in_words
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.settings.commands import LabelConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import absolute_cache, absolute_source
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import load_data, tell


def images_to_label(
    settings: LabelConfig, config: SelaConfig, rules: PixelRules
) -> tuple[list[tuple[str, ImageSet]], tuple[ImageNote, ...]]:
    """Loads the images to label by the rules of the run, not yet in the form that the network takes.

    Returns:
        (for each split its name and images; images that cannot be read).

    Raises:
        ConfigError: a setting is for images of another data set.
        SourceError: the images cannot be loaded.
    """
    cache_dir = absolute_cache(settings.cache_dir) if settings.cache_dir else config.cache_dir
    if not settings.dataset:
        for name, default in (("max_rejected", 0.0), ("class_level", "auto")):
            if getattr(settings, name) != default:
                raise ConfigError(
                    f"`{name}={getattr(settings, name)}` is for images of another `dataset`: those of the run are read as it read them"
                )
        config = dataclasses.replace(
            config,
            data_dir=settings.data_dir or config.data_dir,
            cache_dir=cache_dir,
            memory_limit=settings.memory_limit,
            classes=settings.classes if settings.classes == "none" else config.classes,
        )
        data = load_data(config, rules)
        return [("train", data.train), ("eval", data.held_out)], data.rejected
    options = SourceOptions(
        use_classes=settings.classes == "auto",
        data_dir=settings.data_dir or config.data_dir,
        download=settings.download,
        max_rejected=settings.max_rejected,
        class_level=settings.class_level,
        memory_limit=int(settings.memory_limit * 2**30),
        cache_dir=cache_dir,
        rules=rules,
    )
    with Activity("reading images"):
        splits = load_source(absolute_source(settings.dataset, tell=tell), options, tell=tell)
    parts = [("train", splits.train)] + ([("eval", splits.eval)] if splits.eval is not None else [])
    for line in (*splits.report, *filter(None, (saturation_in_words(images) for _, images in parts))):
        tell(line)
    return parts, splits.rejected
