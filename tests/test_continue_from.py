"""A finished run that is taken up: its settings, and what the new run begins with."""

from __future__ import annotations

import dataclasses
import pathlib
import shutil
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from fixtures import is_one_line, run_here
from scipy.optimize import linear_sum_assignment

from sela_tf.cli import flags
from sela_tf.data.pixel_rules import OLD_RULES, PixelRules
from sela_tf.runs.flagfile import given_by, settings_of_run
from sela_tf.runs.network import NetworkDescription, describe_network, load_run
from sela_tf.runs.workdir import Workdir
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.train import main as train
from sela_tf.training.earlier_run import Continuation
from sela_tf.training.experiment import Experiment
from sela_tf.training.finishing import finish
from sela_tf.training.images import load_training_data
from sela_tf.transport.assignment import Assignment
from sela_tf.transport.linear_logits import LinearLogits

N, MORE, K, T, D = 160, 200, 4, 2, 5


def optimal(logits: LinearLogits, *, initial_potentials: np.ndarray | None) -> Assignment:
    """The best labels with clusters of equal size, by scipy; potentials that tell whether there were some before."""
    log_probs = logits.log_probs()
    _, places = linear_sum_assignment(np.repeat(-log_probs, len(log_probs) // K, axis=1))
    before = np.zeros(K) if initial_potentials is None else initial_potentials
    return Assignment(places // (len(log_probs) // K), (before + np.arange(K)).astype(np.float32), 25.0, rounding_gap=0.0)


@pytest.fixture(scope="module")
def vectors(tmp_path_factory) -> pathlib.Path:
    """The vectors of a small run, `old.npz`, and more of them, `more.npz`."""
    rng = np.random.default_rng(0)
    directory = tmp_path_factory.mktemp("vectors")
    values = (rng.normal(size=(7, D))[np.arange(MORE) % 7] + 0.3 * rng.normal(size=(MORE, D))).astype(np.float32)
    held_out = rng.normal(size=(20, D)).astype(np.float32)
    np.savez(directory / "old.npz", features=values[:N], eval_features=held_out)
    np.savez(directory / "more.npz", features=values, eval_features=held_out)
    np.savez(directory / "longer.npz", features=np.hstack([values, values]), eval_features=np.hstack([held_out, held_out]))
    np.savez(directory / "images.npz", images=rng.integers(0, 256, (100, 8, 8), dtype=np.uint8))
    return directory


@pytest.fixture(scope="module")
def earlier(vectors) -> pathlib.Path:
    """A run with weights, labels and named clusters that was trained for no step."""
    config = SelaConfig(
        dataset=f"features:{vectors / 'old.npz'}", backbone="mlp", width=8, hidden_units=4, num_heads=T, num_clusters=K,
        batch_size=40, epochs=8, learning_rate=0.4, num_relabellings=12, feature_noise=0.3, evaluate="none", report=False, seed=3,
    )  # fmt: skip
    path = vectors / "run"
    experiment = Experiment(config.absolute(), tf.distribute.get_strategy())
    experiment.labelling.set_model(experiment.model)
    experiment.labelling.assign = optimal
    directory = Workdir(path, given_by(config))
    directory.start(0, experiment.config)
    finish(experiment, directory)
    directory.close()
    arrays = dict(np.load(path / "labels.npz"))
    names = np.array([[f"head {head}, cluster {cluster}" for cluster in range(K)] for head in range(T)])
    np.savez(path / "labels.npz", **arrays, cluster_names=names)
    return path


def made(run: pathlib.Path, **settings: Any) -> Experiment:
    config, _ = settings_of_run("", {"continue_from": str(run), **settings})
    experiment = Experiment(config, tf.distribute.get_strategy())
    experiment.labelling.assign = optimal
    return experiment


def test_images_of_another_size_are_seen_at_that_of_the_network(tmp_path):
    for i in range(12):
        side = 16 if i else 24
        (tmp_path / f"{i}.png").write_bytes(tf.io.encode_png(np.full((side, side, 1), 20 * i, np.uint8)).numpy())
    config = SelaConfig(
        dataset=f"folder:{tmp_path}", image_size=0, backbone="resnet8", width=8, num_clusters=2, batch_size=4, epochs=2, eval_fraction=0.3,
    )  # fmt: skip
    network = describe_network(config, (16, 16, 1), (0.0,), (1.0,))
    found, data = load_training_data(config, network=network)
    assert (found.image_size, data.size) == (16, (16, 16))
    (tmp_path / "0.png").unlink()
    found, data = load_training_data(config, network=network)
    assert (found.image_size, data.size) == (0, (16, 16))


class TestSettings:
    @pytest.fixture
    def run(self, tmp_path) -> pathlib.Path:
        path = tmp_path / "run"
        path.mkdir()
        config = SelaConfig(
            dataset="digits", num_clusters=16, num_heads=2, image_size=0, backbone="resnet8", width=8, hidden_units=0, epochs=12,
            brightness=0.3, learning_rate=0.1, num_relabellings=8, backbone_weights="w.keras", frozen_epochs=1, eval_fraction=0.25,
        )  # fmt: skip
        (path / "flags.cfg").write_text(flags.to_flagfile(config))
        return path

    def test_are_the_earlier_runs_but_for_the_course_of_the_training(self, run):
        found, previous = settings_of_run("", {"continue_from": str(run), "blur_probability": 0.1, "num_clusters": 16})
        assert previous is None
        assert (found.dataset, found.num_clusters, found.brightness, found.blur_probability) == ("digits", 16, 0.3, 0.1)
        assert (found.epochs, found.learning_rate, found.num_relabellings, found.monitor_epochs) == (None, None, None, None)
        assert (found.backbone_weights, found.frozen_epochs, found.continue_from) == ("", 0, str(run))

    def test_of_a_config_count_where_they_depart_from_their_defaults(self, run):
        given = given_by(SelaConfig(dataset="digits", continue_from=str(run), contrast=0.1))
        assert given == {"dataset": "digits", "continue_from": str(run), "contrast": 0.1}
        assert settings_of_run("", given)[0].brightness == 0.3

    def test_that_are_typed_at_their_defaults_are_not_the_earlier_runs(self, run, tmp_path, monkeypatch):
        seen = []

        class SeenError(Exception):
            pass

        def look(given, place, *_):
            seen.append(settings_of_run(place.workdir, given)[0])
            raise SeenError

        monkeypatch.setattr("sela_tf.training.run._run", look)
        default = SelaConfig(dataset="digits").brightness
        with pytest.raises(SeenError):
            train(["sela_tf.train", f"--continue_from={run}", f"--workdir={tmp_path / 'new'}", f"--brightness={default}"])
        assert (seen[0].brightness, seen[0].width, seen[0].epochs) == (default, 8, None)

    @pytest.mark.parametrize(
        ("name", "value", "old"),
        [
            ("num_clusters", 8, "16"), ("num_heads", 1, "2"), ("backbone", "resnet20", "resnet8"), ("width", 4, "8"),
            ("hidden_units", 9, "0"), ("background", "black", "white"), ("eval_fraction", 0.3, "0.25"),
        ],
    )  # fmt: skip
    def test_that_contradict_the_network_are_refused_with_both_values(self, run, name, value, old):
        with pytest.raises(ConfigError, match=f"is a run with `{name}={old}`, not `{name}={value}`: leave that out"):
            settings_of_run("", {"continue_from": str(run), name: value})

    def test_that_exclude_each_other(self, run):
        for name in ("labels_from", "backbone_weights"):
            with pytest.raises(ConfigError, match=f"has labels and weights: leave `{name}=/x` out"):
                settings_of_run("", {"continue_from": str(run), name: "/x", "num_relabellings": 0})

    def test_the_directory_itself_and_none(self, run, tmp_path):
        with pytest.raises(ConfigError, match="is the directory of the new run, too: name another one as `workdir`"):
            settings_of_run(run / ".." / "run", {"continue_from": str(run)})
        with pytest.raises(ConfigError, match="`continue_from=/none` holds no run"):
            settings_of_run("", {"continue_from": "/none"})
        with pytest.raises(ConfigError, match="`continue_from` must be text"):
            settings_of_run("", {"continue_from": 5})
        (run / "flags.cfg").write_text("--no_such_flag=1\n")
        with pytest.raises(ConfigError, match="flags.cfg is damaged"):
            settings_of_run("", {"continue_from": str(run)})

    def test_the_directory_that_a_command_names(self, run):
        is_one_line(run_here([[f"--continue_from={run}", f"--workdir={run}"]])[0], f"--continue_from={run} is the directory of the")


@pytest.mark.parametrize("rules", [OLD_RULES, PixelRules((1, 2, 3), 4095, 70)])
@pytest.mark.parametrize("names", [None, np.array([["a", "bc"]])])
def test_what_a_checkpoint_keeps(rules, names, tmp_path):
    network = NetworkDescription(
        backbone="resnet8", image_shape=(8, 8, 1), num_heads=1, num_clusters=200, width=0, hidden_units=3, mean=(0.1,),
        variance=(1 / 3,), synchronized=False, dtype=None, pixel_rules=rules,
    )  # fmt: skip
    whole = Continuation(network, np.array([[-1, 199, 5]]), np.array([[3, 4]]), np.array([2]), names)
    np.savez(tmp_path / "x.npz", **whole.state())
    found = Continuation.of_state(dict(np.load(tmp_path / "x.npz")))
    assert found.network == network
    for one, other in zip(found[1:4], whole[1:4], strict=True):
        np.testing.assert_array_equal(one, other)
    assert found.cluster_names is None if names is None else (found.cluster_names == names).all()
    assert Continuation.of_state({}) is None


class TestStart:
    def test_weights_labels_potentials_and_statistics_are_the_earlier_runs(self, earlier, vectors):
        experiment = made(earlier, dataset=f"features:{vectors / 'more.npz'}")
        labels = dict(np.load(earlier / "labels.npz"))
        for one, other in zip(experiment.model.get_weights(), load_run(earlier).get_weights(), strict=True):
            np.testing.assert_array_equal(one, other)
        assert experiment.description == dataclasses.replace(experiment.continuation.network)
        np.testing.assert_array_equal(experiment.labels.labels[:, :N], labels["labels"])
        np.testing.assert_array_equal(experiment.labels.potentials, np.tile(np.arange(K), (T, 1)))
        np.testing.assert_array_equal(experiment.continuation.cluster_names, labels["cluster_names"])
        assert (experiment.config.epochs, experiment.config.num_relabellings) == (2, 3)
        assert 0 not in experiment.relabel_steps
        experiment.label_anew()
        np.testing.assert_array_equal(experiment.labels.potentials, np.tile(2 * np.arange(K), (T, 1)))
        first = experiment.labels.labels
        sizes = [np.bincount(head, minlength=K) for head in first]
        assert {size for head in sizes for size in head} == {MORE // K}
        moved = (first[:, :N] != labels["labels"]).sum(axis=1)
        assert experiment.continuation.moved_at_start.tolist() == moved.tolist()
        assert moved.max() < 0.2 * N
        # the change of the initial labels is none of this run's
        assert not experiment.labels.num_changes.any()

    def test_nothing_moves_where_nothing_changed_and_a_checkpoint_needs_no_other_file(self, earlier, vectors, tmp_path):
        run = shutil.copytree(earlier, tmp_path / "run")
        experiment = made(run)
        before = experiment.labels.labels
        experiment.label_anew()
        np.testing.assert_array_equal(experiment.labels.labels, before)
        state = experiment.state()
        shutil.rmtree(run)
        kept = {name.removeprefix("continuation/"): value for name, value in state.items() if name.startswith("continuation/")}
        again = Experiment(experiment.config, tf.distribute.get_strategy(), begins=False, continuation=Continuation.of_state(kept))
        again.restore(state)
        for name, value in again.state().items():
            np.testing.assert_array_equal(value, state[name], err_msg=name)
        assert again.description == experiment.description

    def test_what_does_not_fit_is_refused(self, earlier, vectors, tmp_path):
        with pytest.raises(ConfigError, match=r"is a run on vectors, and `dataset=npz:.*` has images: name a data set of vectors"):
            made(earlier, dataset=f"npz:{vectors / 'images.npz'}")
        with pytest.raises(
            ConfigError, match="has a network for 5, and the images of `dataset=features:.*` are 10: give vectors of 5"
        ):
            made(earlier, dataset=f"features:{vectors / 'longer.npz'}")
        unfinished = tmp_path / "unfinished"
        unfinished.mkdir()
        shutil.copy(earlier / "flags.cfg", unfinished)
        with pytest.raises(
            ConfigError, match=r"`continue_from=.*`: the training of the run in .* is not finished: repeat its command"
        ):
            made(unfinished)
        for name in ("model.weights.h5", "labels.npz", "network.json"):
            damaged = shutil.copytree(earlier, tmp_path / name)
            (damaged / name).write_bytes((damaged / name).read_bytes()[:-100])
            with pytest.raises(ConfigError, match=f"`continue_from=.*`: .*{name} is .*damaged"):
                made(damaged)
