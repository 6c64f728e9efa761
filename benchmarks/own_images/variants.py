"""Other ways to train, tried beside the library's own."""

from __future__ import annotations

from typing import Any

from benchmarks.other_labels import start_heads_anew
from benchmarks.other_views import averaged
from benchmarks.own_images.sela import TimedExperiment
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.self_labelling.label_pass import HeadLabels


class HeadsAnew(SelfLabelling):
    """Relabels, and begins the heads anew each time but the last, which is after training."""

    _in_training = False

    def on_train_begin(self, logs: dict | None = None) -> None:
        super().on_train_begin(logs)
        self._in_training = True

    def on_train_end(self, logs: dict | None = None) -> None:
        super().on_train_end(logs)
        self._in_training = False

    def write(self, step: int, outcome: list[HeadLabels]) -> None:
        super().write(step, outcome)
        if self._in_training:
            start_heads_anew(self.model, step)


class HeadsAnewExperiment(TimedExperiment):
    """A run whose heads begin anew at each relabelling."""

    def make_labelling(self, *args: Any, **options: Any) -> SelfLabelling:
        return super().make_labelling(HeadsAnew, *args, **options)


class AveragedExperiment(TimedExperiment):
    """A run that labels by the mean of the features of four views; with `label_view="training"`.

    The heads are linear, so that the mean of the logits is the mean of the log-probabilities but for a number of each image, which the
    transport does not see.
    """

    def make_labelling(self, *args: Any, **options: Any) -> SelfLabelling:
        return super().make_labelling(*args, features=averaged(self.label_views), batch_statistics=False, **options)


VARIANTS: dict[str, type[TimedExperiment]] = {
    "": TimedExperiment,
    "heads_anew": HeadsAnewExperiment,
    "averaged": AveragedExperiment,
}
