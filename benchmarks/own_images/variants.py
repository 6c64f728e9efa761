"""Other ways to train, tried beside the library's own."""

from __future__ import annotations

from benchmarks.own_images.sela import TimedExperiment

VARIANTS: dict[str, type[TimedExperiment]] = {"": TimedExperiment}
