"""The experiment: the parts of a run, made from its settings once, and their state."""

from __future__ import annotations

import dataclasses
import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from sela_tf.callbacks.doctor import CollapseDoctor
from sela_tf.callbacks.every_epochs import EveryEpochs
from sela_tf.callbacks.monitors import ClusterMonitor
from sela_tf.compat.activity import Activity
from sela_tf.compat.releases import (
    LossScaleOptimizer,
    build_optimizer,
    optimizer_variables,
)
from sela_tf.data.batch_sizes import LABEL_PASS_BATCH
from sela_tf.data.image_set import ImageSet
from sela_tf.data.pipeline import Replicas, inference_batches
from sela_tf.files.saves import arrays_under
from sela_tf.models.build import cut_at, with_rotation_head
from sela_tf.models.layer_names import EMBEDDING, HEADS, ROTATION
from sela_tf.models.replicas import put_back, replica_arrays, replica_values
from sela_tf.runs.network import NetworkDescription
from sela_tf.runs.workdir import Workdir
from sela_tf.self_labelling.callback import SelfLabelling
from sela_tf.self_labelling.loss import SelfLabelLoss
from sela_tf.self_labelling.schedule import relabel_steps
from sela_tf.settings.training import SelaConfig
from sela_tf.training.earlier_run import Continuation, continuation_of, read_earlier_run, start_table, take_first_labels
from sela_tf.training.images import Data, augmentation, load_training_data, shape_in_words, training_views
from sela_tf.training.initial_state import description_of, first_network, label_table, settings_of_files
from sela_tf.training.known_labels import known_labels
from sela_tf.training.loop import Clock, EpochMeans, step_function
from sela_tf.training.mean_network import MeanNetwork
from sela_tf.training.monitoring import class_agreement, cluster_monitors, knn_monitor, log_relabelling
from sela_tf.training.optimizer import learning_rate_schedule, make_optimizer
from sela_tf.training.progress import ShownLabelling
from sela_tf.training.provenance import Provenance
from sela_tf.transport.assignment import assign_labels
from sela_tf.transport.shards import ALONE, Shards
from sela_tf.transport.size_bounds import parse_size_bounds


class Experiment:
    """Devices, images, label table, network and label pass of a run, made from the settings.

    Those who study other ways to label, to draw images or to learn override `make_labelling`, `views` or `make_model`.

    Args:
        config: the settings, with absolute paths. Those that are None are chosen from the images.
        strategy: the devices, as `prepare_devices` gives them.
        begins: False if `restore` will replace the first weights and labels. Files that they would come from are not read then.
        data: the images, where they are loaded already and `config` has a value for every setting; None to load them.
        continuation: the relation to the run that is continued, as a checkpoint kept it; None to find it out, or where there is none.
        network: the network whose pixel rules and statistics hold, although these images may have others; None for those of the images, or
            of the run that is continued.
        shards: the workers that train together, each of which makes the experiment.
        scratch_dir: the directory for the heads' inputs where these take more than `label_memory`; None keeps them in memory.

    Raises:
        ValueError: the images cannot be loaded, or the settings do not fit them (SourceError, ConfigError).
    """

    def __init__(
        self,
        config: SelaConfig,
        strategy: tf.distribute.Strategy,
        *,
        begins: bool = True,
        data: Data | None = None,
        continuation: Continuation | None = None,
        network: NetworkDescription | None = None,
        shards: Shards = ALONE,
        scratch_dir: pathlib.Path | None = None,
    ):
        self.strategy, self.shards, self._scratch_dir = strategy, shards, scratch_dir
        earlier = read_earlier_run(config.continue_from) if begins and config.continue_from else None
        network = earlier.network if earlier else continuation.network if continuation else network
        if data is None:
            asked_for = settings_of_files(config) if begins else {}
            config, data = load_training_data(config, replicas=strategy.num_replicas_in_sync, given_by=asked_for, network=network)
        self.config, self.data = config, data
        self._earlier, self.continuation = earlier, continuation_of(earlier, data.train) if earlier else continuation
        no_files: dict[str, Any] = {
            "backbone_weights": "",
            "labels_from": "",
            "known_labels": "",
            "backbone_learning_rate": 0.0,
            "frozen_epochs": 0,
        }
        self._first = config if begins else dataclasses.replace(config, **no_files)
        self.provenance = Provenance(config, data)
        self.steps_per_epoch = len(data.train) // config.batch_size
        self.last_step = config.epochs * self.steps_per_epoch
        self.relabel_steps = self.schedule(self.steps_per_epoch)
        self.labels = label_table(self._first, data, strategy)
        if earlier and self.continuation:
            start_table(self.labels, earlier, self.continuation)
        self.description: NetworkDescription = description_of(config, data)
        self.model = self.make_model()
        self._copy = MeanNetwork(self.model, self.description, strategy, shards) if shards.count > 1 else None
        self.labelling = self.make_labelling()
        self.class_agreement = class_agreement(config, data)
        self.clock = Clock()
        self.means = EpochMeans()
        self.monitors: dict[str, ClusterMonitor | CollapseDoctor] = {}
        self._monitor_states: Mapping[str, np.ndarray] = {}

    @property
    def network(self) -> keras.Model:
        """The network to look at images with: the model, or where several workers train it their copy as of the last `refresh`."""
        return self.model if self._copy is None else self._copy.network

    def refresh(self) -> keras.Model:
        """Returns `network` with the present weights. All workers have to call it together."""
        return self.model if self._copy is None else self._copy.refresh()

    @property
    def own_replicas(self) -> Replicas:
        """The replicas of this process."""
        total = self.strategy.num_replicas_in_sync
        here = total // self.shards.count
        return Replicas(self.shards.index * here, here, total)

    @property
    def pass_batch(self) -> int:
        """The most images of a batch of a label pass: those of one device, times the devices of this process.

        Where statistics of a batch are those of all devices, they share the batch of one, so that the first pass has the statistics of one.
        """
        return LABEL_PASS_BATCH * (1 if self.config.sync_batch_norm else self.own_replicas.here)

    @property
    def own_views(self) -> int:
        """The images of a training batch whose views this process makes."""
        own = self.own_replicas
        return self.config.batch_size * own.here // own.total

    def distributed(self, batches: tf.data.Dataset) -> Any:
        """Returns the batches of `views` as the replicas take them."""
        if self.shards.count > 1:
            # TensorFlow would have every worker compute all views.
            return self.strategy.distribute_datasets_from_function(lambda context: batches)
        return self.strategy.experimental_distribute_dataset(batches) if self.strategy.num_replicas_in_sync > 1 else batches

    @functools.cached_property
    def take_step(self) -> Any:
        """One optimizer step, a tf.function from a batch to the logs so far. It is compiled once."""
        return step_function(self.model, self.strategy, self.config.xla)

    def schedule(self, steps_per_epoch: int) -> list[int]:
        """Returns the steps before which labels are recomputed, for epochs of `steps_per_epoch` steps."""
        config = self.config
        steps = relabel_steps(
            config.num_relabellings, epochs=config.epochs, steps_per_epoch=steps_per_epoch, spacing=config.relabel_spacing
        )
        # A run that continues another one has its first labels before the first step, whatever the schedule.
        return [step for step in steps if step or not config.continue_from]

    def make_model(self) -> keras.Model:
        """Returns the compiled network before its first step, with its loss and its optimizer."""
        config = self.config
        model = first_network(self._first, self.description, self.strategy)
        loss: Any = SelfLabelLoss(self.labels)
        with self.strategy.scope():
            if self._earlier is not None:
                model.set_weights(self._earlier.weights)
            if config.rotation:
                model = with_rotation_head(model)
                loss = {HEADS: loss, ROTATION: keras.losses.SparseCategoricalCrossentropy(from_logits=True)}
            optimizer = make_optimizer(
                config.optimizer,
                learning_rate_schedule(
                    config.learning_rate,
                    schedule=config.lr_schedule,
                    epochs=config.epochs,
                    steps_per_epoch=self.steps_per_epoch,
                    drops=config.lr_drops,
                ),
                momentum=config.momentum,
                weight_decay=config.weight_decay,
                **self._of_backbone(model),
            )
            if config.mixed_precision == "float16":
                optimizer = LossScaleOptimizer(optimizer)
            build_optimizer(optimizer, model.trainable_variables)
            model.compile(optimizer, loss=loss, jit_compile=False)
        replicas = self.strategy.num_replicas_in_sync
        if config.rotation and replicas > 1:
            # Keras makes the trackers of several losses when they are first used, which is too late within a distributed step.
            _, targets, weights = next(iter(self.views(0, 1, batch_size=replicas)))
            sizes = {name: (len(targets[name]), *output.shape[1:]) for name, output in model.output.items()}
            with self.strategy.scope():
                model.compute_loss(y=targets, y_pred={name: tf.zeros(size) for name, size in sizes.items()}, sample_weight=weights)
        return model

    def _of_backbone(self, model: keras.Model) -> dict[str, float]:
        """Returns the arguments of the optimizer for a backbone that learns more slowly, or later; none for any other."""
        config = self.config
        if not config.backbone_learning_rate and not config.frozen_epochs:
            return {}
        return {
            "num_slow": len(cut_at(model, EMBEDDING).trainable_variables),
            "slow_share": (config.backbone_learning_rate or config.learning_rate) / config.learning_rate,
            "frozen_steps": config.frozen_epochs * self.steps_per_epoch,
        }

    def views(self, first_step: int, last_step: int, *, batch_size: int | None = None) -> tf.data.Dataset:
        """Returns the batches that the steps from `first_step` up to, not including, `last_step` train on; of several workers, its parts.

        Args:
            first_step: the first step.
            last_step: the step after the last one.
            batch_size: images of a batch; None for the settings' number.
        """
        return training_views(
            self.config,
            self.data,
            batch_size=batch_size or self.config.batch_size,
            first_step=first_step,
            last_step=last_step,
            replicas=self.strategy.num_replicas_in_sync,
            own=self.own_replicas if self.shards.count > 1 else None,
        )

    def label_views(self, pass_number: int, *, images: ImageSet | None = None, batch_size: int | None = None) -> tf.data.Dataset:
        """Returns every training image once, as the label pass of this number, the optimizer step before which it is made, sees it; of
        several workers, each its own images.

        Args:
            pass_number: the number of the pass.
            images: the images; None for all training images.
            batch_size: the most images of a batch; None for `pass_batch`.
        """
        config = self.config
        return inference_batches(
            self.data.train if images is None else images,
            size=self.data.size,
            batch_size=batch_size or self.pass_batch,
            seed=config.seed,
            augmentation=augmentation(config) if config.label_view == "training" else None,
            pass_number=pass_number,
            share=(self.shards.index, self.shards.count) if images is None else (0, 1),
        )

    def make_labelling(self, kind: type[SelfLabelling] = ShownLabelling, **options: Any) -> SelfLabelling:
        """Returns the callback that relabels as the settings say.

        Args:
            kind: the class of the callback.
            options: arguments of `SelfLabelling` that replace those of the settings.
        """
        config = self.config
        size_min, size_max = parse_size_bounds(config.cluster_sizes)
        settings: dict[str, Any] = {
            "relabel_steps": self.relabel_steps,
            "assign": functools.partial(
                assign_labels,
                lam=config.lam,
                tolerance=config.transport_tolerance,
                max_iterations=config.transport_max_iterations,
                marginals=config.marginals,
                size_min=size_min,
                size_max=size_max,
                exact_balance=config.exact_balance,
                memory_limit=config.label_memory * 2**30,
                verbose=self.shards.index == 0,
            ),
            "label_memory": None if self._scratch_dir is None else config.label_memory,
            "scratch_dir": self._scratch_dir,
            "known": known_labels(self._first, self.data, self.model),
            "batch_statistics": config.label_view == "training",
            "heads_in_turn": config.relabel_heads == "in_turn",
            "shards": self.shards,
            "network": self.refresh,
        }
        return kind(self.labels, self.label_views, **{**settings, **options})

    def label_anew(self) -> None:
        """Labels all images of a run that continues another one, before its first step."""
        if self.continuation is not None:
            self.labelling.set_model(self.model)
            with Activity("first labels: pass over the images, and transport"):
                outcome = self.labelling.compute(0)
            self.continuation = take_first_labels(self.labels, outcome, self.continuation)

    def callbacks(self, directory: Workdir | None) -> list[keras.callbacks.Callback]:
        """Returns the callback that relabels and the monitors, all of which write into `directory`; without one, those that work with other
        workers."""
        every = self.config.monitor_epochs
        together = [self.labelling]
        if self._copy is not None:
            together.append(EveryEpochs(keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: self.refresh()), every))
        if directory is None:
            return together
        self.labelling.log = functools.partial(log_relabelling, directory, self.class_agreement)
        self.monitors = cluster_monitors(
            self.config,
            self.data,
            self.labels,
            self.relabel_steps,
            directory,
            self.clock,
            self.own_replicas.here,
            self._monitor_states,
        )
        monitors = [*knn_monitor(self.config, self.data), *self.monitors.values()]
        return [*together, *(EveryEpochs(each, every, network=self.network) for each in monitors)]

    def state(self) -> dict[str, np.ndarray]:
        """Returns everything that training changes, as arrays by name. All workers have to call it together."""
        trainable = {id(variable) for variable in self.model.trainable_variables}
        arrays = {"replicas": np.array(self.strategy.num_replicas_in_sync)}
        values = {f"model/{i:04d}": replica_values(variable, self.strategy) for i, variable in enumerate(self.model.variables)}
        # Weights are the same everywhere.
        own = [f"model/{i:04d}" for i, variable in enumerate(self.model.variables) if id(variable) not in trainable]
        values |= dict(zip(own, self.shards.joined(*(values[name] for name in own)), strict=True))
        for name, of_replicas in values.items():
            arrays |= replica_arrays(name, of_replicas)
        for i, variable in enumerate(optimizer_variables(self.model.optimizer)):
            arrays |= replica_arrays(f"optimizer/{i:04d}", replica_values(variable, self.strategy))
        # Until the monitors are made, their state is what the checkpoint kept of them.
        monitors = {f"{name}/{key}": value for name, monitor in self.monitors.items() for key, value in monitor.state().items()}
        states = {
            "table": self.labels.state(),
            "monitors": monitors or self._monitor_states,
            "means": self.means.state(self.model),
            "images": self.provenance.state,
        }
        if self.labelling.known is not None:
            states["known"] = {"labels": self.labelling.known}
        if self.continuation is not None:
            states["continuation"] = self.continuation.state()
        return {**arrays, **{f"{place}/{name}": value for place, state in states.items() for name, value in state.items()}}

    def restore(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Puts back what `state` gave; the monitors get theirs when they are made."""
        own = self.own_replicas
        num_saved = int(arrays.get("replicas", own.total))
        which: dict[str, Any] = {"first_replica": own.first, "num_saved": None if num_saved == own.total else num_saved}
        for kind, variables in (("model", self.model.variables), ("optimizer", optimizer_variables(self.model.optimizer))):
            for i, variable in enumerate(variables):
                put_back(f"{kind}/{i:04d}", variable, self.strategy, arrays, **which)
        # Checkpoints that were written before lam was part of them have the lam of the settings.
        lam = np.full(self.config.num_heads, self.config.lam, np.float32)
        self.labels.restore({"lam": lam, **arrays_under("table", arrays)})
        self._monitor_states = arrays_under("monitors", arrays)
        if means := arrays_under("means", arrays):
            self.means.restore(means)
        # Of checkpoints that were written before known labels were part of them, the file is read again.
        known = arrays_under("known", arrays)
        self.labelling.known = known["labels"] if known else known_labels(self.config, self.data, self.model)

    def in_words(self, step: int) -> str:
        """Returns one line about the run for the person who started it at `step`."""
        return (
            f"{len(self.data.train)} training images, {len(self.data.held_out)} held out, {shape_in_words(self.data)}; "
            f"{self.model.count_params():,} parameters; {self.steps_per_epoch} steps an epoch on "
            f"{self.strategy.num_replicas_in_sync} device(s)" + (f"; continues at step {step}" if step else "")
        )
