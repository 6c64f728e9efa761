"""Tests of a run on several workers, which are processes of this machine."""

from __future__ import annotations

import hashlib
import json
import pathlib
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

import numpy as np
import pytest
import tensorflow as tf
from fixtures import SMALL, made_once, rows, run_door, run_python
from thread_workers import in_threads
from worker_processes import WorkerProcesses, free_ports, training

from sela_tf.data.pipeline import Replicas, inference_batches, training_batches
from sela_tf.files.saves import Checkpoint
from sela_tf.models.inference import batch_norms, read_variable
from sela_tf.models.replicas import put_back
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training import cluster as cluster_module
from sela_tf.training.cluster import Cluster, LostWorkerError, cluster_of, meet, watched
from sela_tf.training.devices import cluster_to_join
from sela_tf.training.images import augmentation, load_training_data
from sela_tf.training.initial_state import description_of
from sela_tf.training.mean_network import MeanNetwork
from sela_tf.training.together import Start, check_same, start_together

# The unbroken run may be made by another process of pytest, whose caches lie elsewhere; nothing is written there.
CACHE = f"--cache_dir={pathlib.Path(tempfile.gettempdir()) / 'no_cache_of_workers'}"
FLAGS = (*SMALL, "--evaluate=none", "--epochs=6", "--strategy=multiworker", CACHE)
FILES = ("labels.npz", "model.weights.h5", "metrics.jsonl", "network.json", "results.json")


def _config(jobs: dict, kind: str, index: object) -> dict[str, str]:
    return {"TF_CONFIG": json.dumps({"cluster": jobs, "task": {"type": kind, "index": index}})}


class TestCluster:
    def test_the_chief_comes_first(self):
        jobs = {"worker": ["b:1", "c:2"], "chief": ["a:3"]}
        assert cluster_of(_config(jobs, "worker", 1)) == Cluster(("a:3", "b:1", "c:2"), 2)
        assert cluster_of(_config(jobs, "chief", "0")) == Cluster(("a:3", "b:1", "c:2"), 0)

    def test_one_process_is_none(self):
        assert cluster_of({}) is None
        assert cluster_of({"TF_CONFIG": "{}"}) is None
        assert cluster_of(_config({"worker": ["a:1"]}, "worker", 0)) is None

    @pytest.mark.parametrize(
        ("environment", "message"),
        [
            ({"TF_CONFIG": "worker"}, "must be as .* Received: 'worker'"),
            ({"TF_CONFIG": "[]"}, "must be as"),
            (_config({"worker": ["a:1", "b:1"]}, "worker", 2), "worker 2 is none of the 2"),
            (_config({"worker": ["a:1", "b:1"]}, "evaluator", 0), "task evaluator"),
            (_config({"worker": ["a:1"], "ps": ["b:1"]}, "worker", 0), "Received: worker, ps"),
            (_config({"worker": ["a:1", "b"]}, "worker", 0), "HOST:PORT. Received: 'b'"),
            (_config({"worker": ["a:1", "a:1"]}, "worker", 0), "same address"),
        ],
    )
    def test_refuses_by_name(self, environment, message):
        with pytest.raises(ConfigError, match=message):
            cluster_of(environment)

    def test_several_are_asked_for_and_not_named(self, monkeypatch):
        monkeypatch.setenv("TF_CONFIG", "")
        assert cluster_to_join("auto") is None
        with pytest.raises(ConfigError, match="`strategy=multiworker` needs the environment variable TF_CONFIG"):
            cluster_to_join("multiworker")
        monkeypatch.setenv("TF_CONFIG", _config({"worker": ["a:1", "b:2"]}, "worker", 1)["TF_CONFIG"])
        assert cluster_to_join("auto") == Cluster(("a:1", "b:2"), 1)
        assert cluster_to_join("mirrored") is None

    def test_who_does_not_come_is_named(self, monkeypatch):
        monkeypatch.setattr(cluster_module, "_PAUSE", 0.01)
        own, other, missing = free_ports(3)
        with (
            socket.create_server(("localhost", other)),
            pytest.raises(LostWorkerError, match=rf"^worker 2 \(localhost:{missing}\)"),
        ):
            meet(Cluster((f"localhost:{own}", f"localhost:{other}", f"localhost:{missing}"), 0), seconds=0.1)

    def test_who_is_gone_ends_the_others(self, monkeypatch):
        monkeypatch.setattr(cluster_module, "_SECONDS_BETWEEN_LOOKS", 0.01)
        monkeypatch.setattr(cluster_module, "_PATIENCE_OF_CONNECTION", 0.1)
        ended = queue.Queue()
        monkeypatch.setattr(cluster_module, "end_for", lambda cluster, index: ended.put(index))
        own, other, lost = free_ports(3)
        cluster = Cluster(tuple(f"localhost:{port}" for port in (own, other, lost)), 0)
        with socket.create_server(("localhost", other)), socket.create_server(("localhost", lost)) as server, watched(cluster):
            time.sleep(0.1)
            assert ended.empty()
            server.close()
            assert ended.get(timeout=60) == 2
        assert ended.empty()

    @pytest.mark.slow
    def test_who_stands_still_ends_the_others(self, monkeypatch):
        monkeypatch.setattr(cluster_module, "_SECONDS_BETWEEN_LOOKS", 0.1)
        monkeypatch.setattr(cluster_module, "_PATIENCE_OF_CONNECTION", 0.5)
        ended = queue.Queue()
        monkeypatch.setattr(cluster_module, "end_for", lambda cluster, index: ended.put(index))
        own, other = free_ports(2)
        program = (
            "import tensorflow as tf, time\n"
            f"server = tf.distribute.Server({{'worker': ['localhost:{other}']}}, job_name='worker', task_index=0)\n"
            "print('up', flush=True); time.sleep(300)"
        )
        server = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        try:
            assert server.stdout.readline() == "up\n"
            with watched(Cluster((f"localhost:{own}", f"localhost:{other}"), 0)):
                time.sleep(3)
                assert ended.empty()
                server.send_signal(signal.SIGSTOP)
                assert ended.get(timeout=60) == 1
        finally:
            server.kill()
            server.communicate()

    def test_an_address_that_is_taken_is_told(self):
        (own,) = free_ports(1)
        with socket.create_server(("", own)), pytest.raises(ConfigError, match="cannot listen there"):
            meet(Cluster((f"localhost:{own}", "localhost:1"), 0), seconds=0.1)


class TestStart:
    def test_all_get_the_start_of_the_chief(self, rng):
        arrays = {
            "model/0000": rng.normal(size=(3, 5)).astype(np.float32),
            "images/checksums": rng.integers(2**63, size=7),
            "means/names": np.array(["loss", "ü"]),
            "half": rng.normal(size=4).astype(np.float16),
        }
        start = Start(SelaConfig(dataset="digits", lr_drops=(0.5,)), Checkpoint(7, arrays, {"a": [1, None]}), 2.5)
        config = SelaConfig(dataset="digits", lr_drops=(0.5,))
        found = in_threads(3, lambda shards: start_together(shards, None if shards.index else start, own=config))
        for each in found:
            assert each[0] == start.config
            assert (each.minutes, each.is_done, each.saved.step, each.saved.meta) == (2.5, False, 7, {"a": [1, None]})
            assert each.saved.arrays.keys() == arrays.keys()
            for name, values in arrays.items():
                np.testing.assert_array_equal(each.saved.arrays[name], values)
                assert each.saved.arrays[name].dtype == values.dtype

    def test_a_value_that_only_one_was_given_is_no_difference(self):
        configs = [SelaConfig(dataset="digits", epochs=4), SelaConfig(dataset="digits")]
        found = in_threads(
            2, lambda shards: start_together(shards, None if shards.index else Start(configs[0]), own=configs[shards.index])
        )
        assert [each.config.epochs for each in found] == [4, 4]

    def test_what_differs_is_told_by_all(self):
        for error in in_threads(3, lambda shards: check_same(shards, "run", {"a": 1, "b": [shards.index // 2]})):
            assert isinstance(error, ConfigError)
            assert "worker 2 has another run than worker 0: `b` is [1] there and [0] here" in str(error)


@pytest.fixture(scope="module")
def digits():
    return load_training_data(SelaConfig(dataset="digits", rotation=False, epochs=2))


def test_each_replica_makes_its_part_of_the_batches_of_one(digits):
    config, data = digits
    options = {
        "size": data.size,
        "augmentation": augmentation(config),
        "batch_size": 12,
        "seed": 3,
        "first_step": 5,
        "last_step": 8,
    }
    whole = list(training_batches(data.train, **options))
    for first, here in ((0, 1), (1, 2), (3, 1)):
        parts = list(training_batches(data.train, **options, replicas=Replicas(first, here, 4)))
        assert len(parts) == here * len(whole)
        for number, (views, indices) in enumerate(parts):
            (all_views, all_indices), replica = whole[number // here], first + number % here
            np.testing.assert_array_equal(indices, all_indices[3 * replica : 3 * replica + 3])
            np.testing.assert_allclose(views, all_views[3 * replica : 3 * replica + 3], atol=1e-3)


@pytest.mark.parametrize("batch_size", [100, 1000])
def test_workers_share_the_batches_of_a_pass(digits, batch_size):
    data = digits[1]
    options = {"size": data.size, "batch_size": batch_size, "seed": 1}
    parts = [[indices.numpy() for _, indices in inference_batches(data.train, **options, share=(i, 3))] for i in range(3)]
    assert all(parts)
    np.testing.assert_array_equal(
        np.sort(np.concatenate([indices for part in parts for indices in part])), np.arange(len(data.train))
    )
    if batch_size == 100:
        whole = [indices.numpy() for _, indices in inference_batches(data.train, **options)]
        for i, part in enumerate(parts):
            assert all((one == other).all() for one, other in zip(part, whole[i::3], strict=True))


def test_another_number_of_replicas_gets_their_mean():
    variable, strategy = tf.Variable([0.0, 0.0]), tf.distribute.get_strategy()
    arrays = {"v": np.float32([1, 2]), "v/2": np.float32([4, 8])}
    put_back("v", variable, strategy, arrays, first_replica=2)
    assert variable.numpy().tolist() == [4, 8]
    put_back("v", variable, strategy, arrays, num_saved=3)
    assert variable.numpy().tolist() == [2, 4]


def test_the_network_to_look_at_has_the_mean_of_the_moving_statistics(digits):
    """The weights are those of the training, and no variable of it changes."""
    config, data = digits
    strategy, description = tf.distribute.OneDeviceStrategy("CPU:0"), description_of(config, data)
    models = [description.build() for _ in range(2)]
    models[1].set_weights(models[0].get_weights())
    for model in models:
        model.compile("sgd")
    means = {}
    for layer in batch_norms(models[0]):
        for scale, model in zip((1.0, 4.0), models, strict=True):
            own = next(each for each in batch_norms(model) if each.name == layer.name)
            own.moving_mean.assign(scale * np.arange(own.moving_mean.shape[0]))
        means[layer.name] = 2.5 * np.arange(layer.moving_mean.shape[0])
    before = [model.get_weights() for model in models]
    networks = in_threads(2, lambda shards: MeanNetwork(models[shards.index], description, strategy, shards).refresh())
    for network in networks:
        for layer in batch_norms(network):
            np.testing.assert_allclose(read_variable(layer.moving_mean), means[layer.name])
        for one, other in zip(network.trainable_weights, models[0].trainable_weights, strict=True):
            np.testing.assert_array_equal(read_variable(one), read_variable(other))
    for model, weights in zip(models, before, strict=True):
        for one, other in zip(model.get_weights(), weights, strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.slow
def test_one_and_mirrored_choose_among_the_devices_of_this_machine():
    found = run_python(
        "from sela_tf.settings.training import SelaConfig\n"
        "from sela_tf.training.devices import prepare_devices\n"
        "for strategy in ('one', 'mirrored', 'auto'):\n"
        "    config = SelaConfig(dataset='digits', logical_cpus=2, strategy=strategy)\n"
        "    print(prepare_devices(config).num_replicas_in_sync)\n",
        CUDA_VISIBLE_DEVICES="",
    )
    assert found.stdout.split() == ["1", "2", "2"], found.stderr


def _digests(workdir: pathlib.Path) -> dict[str, str]:
    return {name: hashlib.sha256((workdir / name).read_bytes()).hexdigest() for name in FILES}


def _wait_for_epoch(workdir: pathlib.Path, epoch: int, workers: WorkerProcesses) -> None:
    while not (workdir / "metrics.jsonl").exists() or not any(
        row["kind"] == "epoch" and row["epoch"] >= epoch for row in rows(workdir)
    ):
        assert all(process.poll() is None for process in workers.processes), workers.said
        time.sleep(0.1)


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory):
    """A run of two workers, each with moving statistics of its own."""

    def run(directory: pathlib.Path) -> list:
        with training(2, directory / "run", FLAGS) as workers:
            return [workers.statuses(), workers.said]

    directory, said = made_once(tmp_path_factory, "two-workers", run)
    assert said[0] == [0, 0], said
    return directory / "run", said[1]


@pytest.mark.slow
def test_the_chief_alone_writes_and_speaks(unbroken):
    workdir, (chief, other) = unbroken
    assert "on 2 device(s)" in chief
    assert other == ""
    assert {path.name for path in workdir.iterdir()} >= {*FILES, "flags.cfg", "checkpoints"}
    with np.load(workdir / "labels.npz") as labels:
        for head in labels["labels"]:
            assert np.ptp(np.bincount(head, minlength=16)) <= 1


@pytest.mark.slow
def test_two_workers_are_two_devices(tmp_path):
    """With synchronised batch norm two processes take the steps of two devices of one, to the last bit."""
    flags = (*SMALL, "--evaluate=none", "--sync_batch_norm", "--epochs=1", "--num_relabellings=2")
    with training(2, tmp_path / "workers", flags) as workers:
        assert workers.statuses() == [0, 0], workers.said
    process = run_door(*flags, "--logical_cpus=2", f"--workdir={tmp_path / 'devices'}")
    assert process.returncode == 0, process.stderr
    one, other = (rows(tmp_path / name) for name in ("workers", "devices"))
    assert [row["loss"] for row in one if row["kind"] == "train"] == [row["loss"] for row in other if row["kind"] == "train"]
    weights = [(tmp_path / name / "model.weights.h5").read_bytes() for name in ("workers", "devices")]
    assert weights[0] == weights[1]
    with np.load(tmp_path / "workers" / "labels.npz") as one, np.load(tmp_path / "devices" / "labels.npz") as other:
        np.testing.assert_array_equal(one["training_labels"], other["training_labels"])
        np.testing.assert_array_equal(one["labels"], other["labels"])


@pytest.mark.slow
def test_workers_that_are_killed_or_stopped_go_on_as_unbroken_ones(unbroken, tmp_path):
    """A lost worker ends the other, also where it is the chief; a signal to one stops both, saved."""
    workdir = tmp_path / "run"
    with training(2, workdir, FLAGS) as workers:
        _wait_for_epoch(workdir, 0, workers)
        workers.processes[1].kill()
        assert workers.processes[0].wait(timeout=120) == 5
        assert "worker 1 (localhost:" in workers.said[0]
        assert "is gone, or stands still. Start all 2 processes again" in workers.said[0]
    with training(2, workdir, FLAGS) as workers:
        _wait_for_epoch(workdir, 1, workers)
        workers.processes[1].send_signal(signal.SIGTERM)
        assert workers.statuses() == [128 + signal.SIGTERM] * 2, workers.said
        assert "SIGTERM: stopped and saved at step" in workers.said[0]
    with training(2, workdir, FLAGS) as workers:
        while "continues at step" not in workers.said[0]:
            assert workers.processes[0].poll() is None, workers.said
            time.sleep(0.1)
        workers.processes[0].kill()
        assert workers.processes[1].wait(timeout=120) == 5
        assert "worker 0 (localhost:" in workers.said[1]
    with training(2, workdir, FLAGS) as workers:
        assert workers.statuses() == [0, 0], workers.said
    assert _digests(workdir) == _digests(unbroken[0])


@pytest.mark.slow
def test_one_process_goes_on_with_the_run_of_two(unbroken, tmp_path):
    shutil.copytree(unbroken[0], tmp_path / "run")
    process = run_door("--strategy=one", "--epochs=7", f"--workdir={tmp_path / 'run'}")
    assert process.returncode == 0, process.stderr
    assert "on 1 device(s); continues at step 126" in process.stdout
    assert rows(tmp_path / "run")[-1]["step"] == 147


@pytest.mark.slow
def test_other_settings_are_told_by_both(tmp_path):
    with training(2, tmp_path / "run", FLAGS, own={1: ["--lam=10"]}) as workers:
        assert workers.statuses() == [2, 2]
        for said in workers.said:
            assert "worker 1 has another command than worker 0: --lam is 10.0 there and 25.0 here" in said
    assert not (tmp_path / "run").exists()


_TRANSPORT = """
import json, os, sys
import tensorflow as tf
strategy = tf.distribute.MultiWorkerMirroredStrategy()
import numpy as np
from sela_tf.training.workers import Workers
from sela_tf.transport.assignment import assign_labels
task = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
workers = Workers(strategy, task, 3)
few, none, pairs = workers.joined(np.arange(task, dtype=np.int32), np.zeros((0, 4), np.float32), np.full((1, 2), task))
np.testing.assert_array_equal(few, [0, 0, 1])
np.testing.assert_array_equal(pairs, [[0, 0], [1, 1], [2, 2]])
assert few.dtype == np.int32 and none.shape == (0, 4)
assert workers.joined(np.zeros(0))[0].shape == (0,)
assert workers.texts("é" * task) == ["", "é", "éé"]
problem = np.load(sys.argv[1])
rows = np.flatnonzero(problem["owner"] == task)
found = assign_labels(problem["log_probs"][rows], shards=workers)
whole = np.empty(len(problem["owner"]), np.int64)
indices, labels = workers.joined(rows, found.labels)
whole[indices] = labels
np.testing.assert_array_equal(whole, problem["labels"])
print("equal after", workers.num_messages, "messages")
"""


@pytest.mark.slow
def test_three_processes_label_as_one(rng, tmp_path):
    import oracle

    from sela_tf.transport.assignment import assign_labels

    log_probs = oracle.log_probs(rng, 4000, 24)
    owner = np.minimum(rng.integers(4, size=4000), 2)
    np.savez(tmp_path / "problem.npz", log_probs=log_probs, owner=owner, labels=assign_labels(log_probs).labels)
    workers = WorkerProcesses([["-c", _TRANSPORT, str(tmp_path / "problem.npz")]] * 3, tmp_path)
    assert workers.statuses() == [0, 0, 0], workers.said
    assert all("equal after" in said for said in workers.said)
