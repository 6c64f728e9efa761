"""Training that holds the labels of images that a file of names calls as it calls clusters."""

from __future__ import annotations

import dataclasses
import pathlib
from typing import Any, NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf
from test_names import HEADER, TABLE, K, N, T

from sela_tf.commands.label_names import LabelNames
from sela_tf.data.errors import SourceError
from sela_tf.data.pipeline import inference_batches
from sela_tf.self_labelling.label_pass import head_log_probs
from sela_tf.settings.training import SelaConfig
from sela_tf.training.experiment import Experiment
from sela_tf.training.images import Data, load_training_data
from sela_tf.training.initial_state import description_of, first_network
from sela_tf.training.known_labels import _choose, known_labels


class Started(NamedTuple):
    """A training that has not begun: images, and the network before its first step."""

    config: SelaConfig
    data: Data
    model: keras.Model

    def known(self, path: pathlib.Path, text: str) -> np.ndarray:
        """The labels that are held by a file of names."""
        path.write_text(HEADER + text)
        return known_labels(dataclasses.replace(self.config, known_labels=str(path)), self.data, self.model)


@pytest.fixture(scope="module")
def started(tmp_path_factory) -> Started:
    path = tmp_path_factory.mktemp("vectors") / "vectors.npz"
    random = np.random.default_rng(0)
    np.savez(path, features=random.normal(size=(N, 5)), eval_features=random.normal(size=(30, 5)))
    settings: dict[str, Any] = {
        "dataset": f"features:{path}", "backbone": "mlp", "width": 8, "hidden_units": 4, "num_heads": T, "num_clusters": K,
        "batch_size": 40, "epochs": 2, "num_relabellings": 3, "report": False,
    }  # fmt: skip
    config, data = load_training_data(SelaConfig(**settings))
    return Started(config, data, first_network(config, description_of(config, data), tf.distribute.get_strategy()))


CLUSTERS = "0,0,,cat\n0,2,,cat\n0,3,,dog\n1,5,,dog\n1,1,,cow\n"


class TestKnownLabels:
    """`known_labels` with a file of names."""

    def test_an_image_gets_the_cluster_of_its_name_that_it_scores_highest_in(self, started, tmp_path):
        known = started.known(tmp_path / "known.csv", f"{CLUSTERS},,4,cat\n,,7.0,cat\n,,9,dog\n,,11,cat\n,,12,\n")
        # head 1 has no cluster called cat
        assert (known[1] >= 0).nonzero()[0].tolist() == [9]
        assert known[:, 9].tolist() == [3, 5]
        assert (known[0] >= 0).nonzero()[0].tolist() == [4, 7, 9, 11]
        views = inference_batches(started.data.train, size=(), batch_size=N)
        scores = dict(head_log_probs(started.model, views, num_examples=N, batch_statistics=True))[0]
        for image in (4, 7, 11):
            assert known[0, image] == (0 if scores[image, 0] > scores[image, 2] else 2)

    @pytest.mark.slow
    def test_only_they_are_looked_at_by_a_network_that_has_learned(self, started, tmp_path, monkeypatch):
        text = f"{CLUSTERS},,4,cat\n,,7,cat\n,,9,dog\n"
        expected = started.known(tmp_path / "known.csv", text)
        monkeypatch.setattr("sela_tf.training.known_labels.has_empty_statistics", lambda model: False)
        views = inference_batches(started.data.train, size=(), batch_size=N)
        scores = dict(head_log_probs(started.model, views, num_examples=N))[0]
        known = started.known(tmp_path / "known.csv", text)
        assert known[0, [4, 7]].tolist() == [2 * int(scores[image, 2] > scores[image, 0]) for image in (4, 7)]
        assert ((known >= 0) == (expected >= 0)).all()

    def test_a_full_cluster_takes_the_most_certain(self, started, tmp_path):
        images = "".join(f",,{row},cow\n" for row in range(21))
        with pytest.raises(
            SourceError, match="21 images are called 'cow', and the clusters of head 1 .* room for 20 each: call more"
        ):
            started.known(tmp_path / "known.csv", CLUSTERS + images)
        scores = np.log([[0.9, 0.1], [0.6, 0.4], [0.95, 0.05]])
        assert _choose(scores, 3, 0, np.array(["a"] * 3), "").tolist() == [0, 0, 0]
        assert _choose(scores, 2, 0, np.array(["a"] * 3), "").tolist() == [0, 1, 0]

    @pytest.mark.parametrize(("sizes", "room"), [(":21", 21), ("1:25", 25), ("1:", N)])
    def test_a_bounded_cluster_takes_as_many_as_its_largest_size(self, started, tmp_path, sizes, room):
        bounded = started._replace(config=dataclasses.replace(started.config, cluster_sizes=sizes))
        for count in (room, room + 1)[: 1 if room == N else 2]:
            images = "".join(f",,{row},cow\n" for row in range(count))
            if count > room:
                with pytest.raises(SourceError, match=f"head 1 .* room for {room} each"):
                    bounded.known(tmp_path / "known.csv", CLUSTERS + images)
            else:
                assert (bounded.known(tmp_path / "known.csv", CLUSTERS + images)[1] == 1).sum() == count

    def test_images_are_found_by_name(self, started, tmp_path, capsys):
        """In either Unicode form; those that are held out are told."""
        train, held_out = (
            dataclasses.replace(images, names=tuple(f"{split}/caf\u00e9 {i}.png" for i in range(len(images))))
            for split, images in (("train", started.data.train), ("val", started.data.held_out))
        )
        named_data = started._replace(data=started.data._replace(train=train, held_out=held_out))
        text = f"{CLUSTERS},,train/cafe\u0301 4.png,dog\n,, train/caf\u00e9 5.png ,dog\n,,val/caf\u00e9 5.png,bird\n"
        assert named_data.known(tmp_path / "known.csv", text)[:, [4, 5, 6]].tolist() == [[3, 3, -1], [5, 5, -1]]
        assert "1 labels are of images that are not trained on" in capsys.readouterr().out
        with pytest.raises(SourceError, match="none of the 120 training images, nor of those left out, has the name '4'"):
            named_data.known(tmp_path / "known.csv", f"{CLUSTERS},,4,dog\n")
        names = LabelNames(TABLE, {"train/cafe\u0301 4.png": "a", "4": "b", "val/caf\u00e9 5.png": ""})
        assert [names.of_images(images, is_first=False, are_of_run=False) for images in (train, held_out)] == [{4: "a"}, {5: ""}]
        assert names.of_images(started.data.train, is_first=True, are_of_run=True) == {4: "b"}
        assert names.of_images(started.data.train, is_first=True, are_of_run=False) == {}
        assert names.of_images(started.data.held_out, is_first=False, are_of_run=True) == {}
        assert names.column(1, np.array([1, 2, 0]), {4: "longer than it"}, 3).tolist() == ["a", "longer than it", ""]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            (
                ",,4,bird\n",
                "calls '4' 'bird', and no cluster has this name: call a cluster so, or leave the name of the image empty",
            ),
            (",,120,cat\n", "none of the 120 training images, nor of those left out, has the row '120'"),
            (",,4,cat\n,,4.0,dog\n", "calls '4.0' both 'cat' and 'dog'"),
            ("0,6,,cat\n", "line 7 of .*known_labels.* from 0 to 5"),
        ],
    )
    def test_what_cannot_be_held(self, started, tmp_path, text, message):
        with pytest.raises(SourceError, match=message):
            started.known(tmp_path / "known.csv", CLUSTERS + text)

    def test_names_of_clusters_and_empty_names_hold_nothing(self, started, tmp_path):
        assert (started.known(tmp_path / "known.csv", f"{CLUSTERS},,4,\n") == -1).all()

    @pytest.mark.slow
    def test_they_are_held_in_every_relabelling_and_outlive_a_kill(self, started, tmp_path):
        """A continued run takes the choice from the checkpoint, whatever its weights are by then, and whatever became of the file."""
        path = tmp_path / "known.csv"
        known = started.known(path, f"{CLUSTERS},,4,cat\n,,9,dog\n")
        config, strategy = dataclasses.replace(started.config, known_labels=str(path)), tf.distribute.get_strategy()

        def relabelled(experiment: Experiment) -> None:
            experiment.labelling.set_model(experiment.model)
            for step in range(2):
                kernel = experiment.model.get_layer("heads").kernel
                kernel.assign(3 * np.random.default_rng(step).normal(size=kernel.shape))
                experiment.labelling.relabel(step)
                assert (experiment.labels.labels[known >= 0] == known[known >= 0]).all()
                assert all(np.bincount(head).tolist() == [N // K] * K for head in experiment.labels.labels)

        experiment = Experiment(config, strategy)
        np.testing.assert_array_equal(experiment.labelling.known, known)
        relabelled(experiment)
        path.write_text(f"{HEADER}0,1,,cow\n")
        again = Experiment(config, strategy, begins=False)
        assert again.labelling.known is None
        again.restore(experiment.state())
        relabelled(again)
