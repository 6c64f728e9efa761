"""Config, flags, config files, optimizer and schedules, checkpoints, and the directory of a run."""

from __future__ import annotations

import dataclasses
import json

import keras
import numpy as np
import pytest
from absl import flags as absl_flags
from fixtures import ROOT

from sela_tf.cli import flags
from sela_tf.runs import checkpoint
from sela_tf.runs.results import read_results
from sela_tf.runs.workdir import Workdir
from sela_tf.settings.commands import ProbeConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.optimizer import CoupledSGD, learning_rate_schedule


def parsed(*argv: str) -> SelaConfig:
    values = absl_flags.FlagValues()
    flags.define(values, SelaConfig)
    flags.parse(values, ["door", *argv])
    return flags.settings(values, SelaConfig).absolute()


class TestFlags:
    def test_defaults_are_the_configs(self):
        assert parsed("--dataset=digits") == SelaConfig(dataset="digits").absolute()

    def test_flagfile_round_trip(self, tmp_path):
        config = parsed(
            "--dataset=digits", "--xla", "--lr_drops=0.25,0.5", "--lam=10", "--epochs=7", "--weight_decay=5e-4", "--nodownload"
        )
        (tmp_path / "flags.cfg").write_text(flags.to_flagfile(config))
        assert flags.from_flagfile(tmp_path / "flags.cfg") == config
        assert config.lr_drops == (0.25, 0.5)

    def test_a_list_of_drops_reads_back_too(self, tmp_path):
        (tmp_path / "flags.cfg").write_text(flags.to_flagfile(SelaConfig(dataset="digits", lr_drops=[0.5])))
        assert flags.from_flagfile(tmp_path / "flags.cfg").lr_drops == (0.5,)

    def test_paths_become_absolute(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        config = parsed("--dataset=folder:images", "--data_dir=x", "--cache_dir=y")
        assert config.cache_dir == f"{tmp_path}/y"
        assert config.dataset == f"folder:{tmp_path}/images"
        assert config.data_dir == f"{tmp_path}/x"
        assert parsed("--dataset=fashion_mnist:3.*.*").dataset == "fashion_mnist:3.*.*"

    def test_the_cache_is_where_the_system_has_it(self, tmp_path, monkeypatch):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        assert parsed("--dataset=digits").cache_dir == f"{tmp_path}/sela_tf"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert parsed("--dataset=digits").cache_dir == f"{tmp_path}/home/.cache/sela_tf"

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            (["--dataset=digits", "--epocs=3"], "'epocs'. Did you mean: epochs"),
            (["--dataset=digits", "--epochs=three"], "--epochs=three"),
            (["--dataset=digits", "epochs=3"], "'epochs=3' is no flag"),
            (["--dataset=digits", "--lr_schedule=linear"], "<step|cosine>"),
            (["--dataset=digits", "--lr_drops=a,b"], r"\['a', 'b'\]"),
            (["--dataset=digits", "--lr_drops=0.5,0.2"], "increasing"),
            (["--flagfile=/none.cfg"], "/none.cfg"),
            ([], "--dataset is missing"),
        ],
    )
    def test_bad_lines_are_named(self, argv, message):
        with pytest.raises(ConfigError, match=message):
            parsed(*argv)

    @pytest.mark.parametrize(
        "setting",
        [
            {"num_clusters": 1}, {"num_heads": 0}, {"epochs": 0}, {"batch_size": 1}, {"lam": 0.0}, {"lam": float("nan")}, {"crop_scale": 0.0},
            {"hue": 0.6}, {"momentum": 1.0}, {"eval_fraction": 1.0}, {"learning_rate": float("inf")}, {"seed": -1}, {"image_size": 1},
            {"learning_rate": 0.0}, {"transport_tolerance": 1e-9}, {"imbalance": "some"}, {"mixed_precision": "int8"}, {"num_relabellings": -1}, {"weight_decay": float("nan")}, {"seed": 2**40}, {"flip_probability": 1.5},
        ],
    )  # fmt: skip
    def test_values_out_of_range_are_named(self, setting):
        (name, value), *_ = setting.items()
        with pytest.raises(ConfigError, match=f"--{name} must be .*{value}"):
            SelaConfig(**{"dataset": "digits", **setting})

    @pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.cfg")), ids=lambda path: path.name)
    def test_config_files(self, path):
        """Every config parses, says in its head what it is, and holds only what departs from the defaults."""
        config = parsed(f"--flagfile={path}")
        text = path.read_text()
        for word in ("Source:", "Command:", "Expected:", "Measured:", "Time:", f"--flagfile=configs/{path.name}"):
            assert word in text, word
        settings = [line.split("=")[0].removeprefix("--") for line in text.splitlines() if line.startswith("--")]
        defaults = {field.name: field.default for field in dataclasses.fields(SelaConfig)}
        assert len(set(settings)) == len(settings)
        assert [name for name in settings if getattr(config, name) == defaults[name]] == []

    @pytest.mark.parametrize(
        ("name", "backbone", "num_heads"),
        [
            ("imagenet_alexnet_3kx1", "alexnet", 1), ("imagenet_alexnet_3kx10", "alexnet", 10),
            ("imagenet_resnet50_3kx10", "preact_resnet50", 10),
        ],
    )  # fmt: skip
    def test_imagenet_recipes_are_the_papers(self, name, backbone, num_heads):
        config = parsed(f"--flagfile={ROOT}/configs/{name}.cfg")
        assert (config.backbone, config.width, config.num_heads, config.num_clusters) == (backbone, 0, num_heads, 3000)
        assert (config.lam, config.num_relabellings, config.relabel_spacing) == (25.0, 80, "quadratic")
        assert (config.epochs, config.batch_size, config.learning_rate, config.momentum) == (400, 256, 0.05, 0.9)
        assert [drop * config.epochs for drop in config.lr_drops] == [150, 300, 350]
        assert (config.weight_decay, config.image_size, config.crop_scale) == (1e-5, 224, 0.08)
        assert (config.brightness, config.hue, config.grayscale_probability, config.flip_probability) == (0.4, 0.4, 0.2, 0.5)

    @pytest.mark.parametrize(("name", "dataset"), [("cifar10", "cifar10"), ("cifar100", "cifar100"), ("svhn", "svhn_cropped")])
    def test_small_image_recipes_are_the_papers(self, name, dataset):
        config = parsed(f"--flagfile={ROOT}/configs/{name}_128x10.cfg")
        assert (config.dataset, config.backbone, config.image_size, config.crop_scale) == (dataset, "alexnet", 224, 0.2)
        assert (config.num_heads, config.num_clusters, config.lam) == (10, 128, 10.0)
        assert (config.num_relabellings, config.relabel_spacing, config.relabel_heads) == (400, "linear", "in_turn")
        assert (config.epochs, config.batch_size, config.learning_rate, config.weight_decay) == (400, 128, 0.03, 5e-4)
        assert [drop * config.epochs for drop in config.lr_drops] == [240, 320]

    def test_recipes_that_depart_from_these(self):
        unequal = parsed(f"--flagfile={ROOT}/configs/cifar10_128x1_imbalanced.cfg")
        twin = parsed(f"--flagfile={ROOT}/configs/cifar10_128x10.cfg")
        different = {field.name for field in dataclasses.fields(twin) if getattr(unequal, field.name) != getattr(twin, field.name)}
        assert different == {"imbalance", "num_heads", "relabel_heads"}
        for name, rotation in (("rot", True), ("transfer", False)):
            config = parsed(f"--flagfile={ROOT}/configs/imagenet_alexnet_{name}.cfg")
            assert (config.rotation, config.num_relabellings, config.epochs, config.learning_rate) == (rotation, 0, 90, 0.05)
            assert config.labels_from.endswith("/run/labels.npz")
            schedule = learning_rate_schedule(1.0, schedule="step", epochs=90, steps_per_epoch=2, drops=config.lr_drops)
            rates = [float(schedule(2 * epoch)) for epoch in (29, 30, 59, 60, 89)]
            assert rates == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])

    def test_labels_of_another_run_exclude_relabelling(self):
        with pytest.raises(ConfigError, match="add --num_relabellings=0. Received: --num_relabellings=80"):
            parsed("--dataset=digits", "--labels_from=x.npz")
        with pytest.raises(ConfigError, match="exclude each other"):
            parsed("--dataset=digits", "--labels_from=x.npz", "--num_relabellings=0", "--known_labels=y.csv")

    def test_a_share_of_no_rotation_is_refused(self):
        assert parsed("--dataset=digits", "--rotation", "--rotation_share=0.25").rotation_share == 0.25
        with pytest.raises(ConfigError, match="--rotation_share=0.25 needs --rotation"):
            parsed("--dataset=digits", "--rotation_share=0.25")
        with pytest.raises(ConfigError, match="--rotation_share must be above 0"):
            parsed("--dataset=digits", "--rotation", "--rotation_share=0")


class TestProbeSettings:
    @staticmethod
    def parsed(*argv: str) -> ProbeConfig:
        values = absl_flags.FlagValues()
        flags.define(values, ProbeConfig)
        flags.parse(values, ["door", *argv])
        return flags.settings(values, ProbeConfig)

    def test_flagfiles_are_the_papers(self):
        alexnet = self.parsed(f"--flagfile={ROOT}/configs/probes/alexnet.cfg", "--workdir=a,b")
        assert (alexnet.workdir, alexnet.stages) == (("a", "b"), ("conv1", "conv2", "conv3", "conv4", "conv5"))
        assert (alexnet.epochs, alexnet.batch_size, alexnet.learning_rate, alexnet.drop_epochs) == (36, 192, 0.01, (10, 20, 30))
        assert (alexnet.momentum, alexnet.weight_decay, alexnet.ten_crop, alexnet.knn) == (0.9, 1e-5, True, (10, 50, 200))
        resnet = self.parsed(f"--flagfile={ROOT}/configs/probes/resnet.cfg", "--workdir=a")
        assert (resnet.epochs, resnet.batch_size, resnet.learning_rate, resnet.drop_epochs) == (146, 1024, 0.1, (85, 128))
        assert (resnet.weight_decay, resnet.protocol, resnet.stages) == (0, "sgd", ("embedding",))

    @pytest.mark.parametrize(
        ("argv", "message"),
        [
            ([], "--workdir is missing"), (["--workdir=a", "--knn=0"], "--knn must be"), (["--workdir=a", "--knn=ten"], "as in 10,50,200"),
            (["--workdir=a", "--kmeans=1"], "--kmeans must be numbers of clusters from 2. Received: .1"),
            (["--workdir=a", "--ten_crop"], "--ten_crop needs --protocol=sgd"), (["--workdir=a", "--drop_epochs=3,2"], "--drop_epochs must be"),
            (["--workdir=a", "--epochs=0"], "--epochs must be at least 1"), (["--workdir=a", "--learning_rate=0"], "--learning_rate must be above 0"),
        ],
    )  # fmt: skip
    def test_refuses_by_name(self, argv, message):
        with pytest.raises(ConfigError, match=message):
            self.parsed(*argv)


class TestOptimizer:
    def test_is_pytorchs_sgd(self, rng):
        weight = keras.Variable(rng.normal(size=(4, 3)).astype(np.float32))
        expected, velocity = np.asarray(weight, np.float64).copy(), np.zeros((4, 3))
        schedule = learning_rate_schedule(0.1, schedule="step", epochs=4, steps_per_epoch=5, drops=(0.5,))
        optimizer = CoupledSGD(schedule, momentum=0.9, coupled_weight_decay=0.01)
        for step in range(20):
            gradient = rng.normal(size=(4, 3)).astype(np.float32)
            optimizer.apply_gradients([(gradient, weight)])
            velocity = 0.9 * velocity + gradient + 0.01 * expected
            expected = expected - (0.1 if step < 10 else 0.01) * velocity
            np.testing.assert_allclose(weight, expected, rtol=1e-4, atol=1e-5)

    def test_drops_at_whole_epochs(self):
        """150, 300, 350 of 400; and 4, 8, 9 of 10."""
        for epochs, drops in ((400, (150, 300, 350)), (10, (4, 8, 9))):
            rate = learning_rate_schedule(1.0, schedule="step", epochs=epochs, steps_per_epoch=3, drops=(0.375, 0.75, 0.875))
            for i, drop in enumerate(drops):
                assert float(rate(3 * drop - 1)) == pytest.approx(0.1**i)
                assert float(rate(3 * drop)) == pytest.approx(0.1 ** (i + 1))

    def test_no_drops(self):
        rate = learning_rate_schedule(0.2, schedule="step", epochs=10, steps_per_epoch=10, drops=())
        assert [float(rate(step)) for step in (0, 50, 99)] == pytest.approx([0.2] * 3)

    def test_cosine(self):
        rate = learning_rate_schedule(0.2, schedule="cosine", epochs=10, steps_per_epoch=10, drops=())
        assert [float(rate(step)) for step in (0, 50, 100)] == pytest.approx([0.2, 0.1, 0.0], abs=1e-6)

    def test_config_round_trip(self):
        twin = CoupledSGD.from_config(CoupledSGD(0.3, momentum=0.8, coupled_weight_decay=0.02).get_config())
        assert (twin.momentum, twin.coupled_weight_decay, float(twin.learning_rate)) == pytest.approx((0.8, 0.02, 0.3))


class TestCheckpoint:
    def test_round_trip_and_keep(self, tmp_path, rng):
        for step in (5, 10, 15):
            checkpoint.save(tmp_path, step, {"a/b": rng.normal(size=3), "n": np.arange(step)}, {"note": "x"}, keep=2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
        newest, passed_over = checkpoint.load_newest(tmp_path)
        assert (newest.step, newest.meta["note"], passed_over) == (15, "x", [])
        np.testing.assert_array_equal(newest.arrays["n"], np.arange(15))
        assert set(newest.arrays) == {"a/b", "n"}

    def test_none(self, tmp_path):
        assert checkpoint.load_newest(tmp_path / "none") == (None, [])

    @pytest.mark.parametrize("damage", ["cut", "flip", "no meta", "cut meta"])
    def test_a_damaged_save_is_passed_over_and_named(self, tmp_path, damage):
        for step in (1, 2):
            checkpoint.save(tmp_path, step, {"n": np.arange(1000) * step}, {}, keep=2)
        state, meta = (tmp_path / "step-00000002" / name for name in ("state.npz", "meta.json"))
        data = bytearray(state.read_bytes())
        if damage == "cut":
            state.write_bytes(data[:-10])
        elif damage == "flip":
            data[500] ^= 1
            state.write_bytes(data)
        elif damage == "no meta":
            meta.unlink()
        else:
            meta.write_text(meta.read_text()[:9])
        newest, passed_over = checkpoint.load_newest(tmp_path)
        assert newest.step == 1
        assert len(passed_over) == 1
        assert "step-00000002" in passed_over[0]

    def test_going_on_from_an_older_save_drops_the_later_ones_and_spares_what_is_no_save(self, tmp_path):
        for step in (100, 200):
            checkpoint.save(tmp_path, step, {"n": np.arange(3)}, {}, keep=2)
        (tmp_path / "step-00000200" / "state.npz").write_bytes(b"x")
        (tmp_path / "step-00000100-mine").mkdir()
        (tmp_path / "step-00000300.zip").write_bytes(b"")
        checkpoint.save(tmp_path, 150, {"n": np.arange(3)}, {}, keep=1)
        assert checkpoint.load_newest(tmp_path)[0].step == 150
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100-mine", "step-00000150", "step-00000300.zip"]

    def test_what_a_kill_left_is_no_save(self, tmp_path):
        checkpoint.save(tmp_path, 1, {"n": np.arange(3)}, {}, keep=2)
        (tmp_path / ".unfinished-step-00000002").mkdir()
        assert checkpoint.load_newest(tmp_path)[0].step == 1
        checkpoint.save(tmp_path, 2, {"n": np.arange(3)}, {}, keep=2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


class TestWorkdir:
    config = SelaConfig(dataset="digits", num_clusters=10, epochs=3)

    def test_belongs_to_one_run(self, tmp_path):
        path = tmp_path / "a" / "run"
        Workdir(path, self.config)
        assert not path.exists()
        first = Workdir(path, self.config)
        first.start(0)
        longer = Workdir(path, dataclasses.replace(self.config, epochs=5, log_every_steps=7))
        with pytest.raises(ConfigError, match="in use by process"):
            longer.start(0)
        first.close()
        longer.start(0)
        longer.close()
        with pytest.raises(ConfigError, match="--epochs was 5, is 4"):
            Workdir(path, dataclasses.replace(self.config, epochs=4))
        with pytest.raises(ConfigError, match=r"--seed was 0, is 1; --lam was 25.0, is 3|--lam was 25.0, is 3.*--seed was 0, is 1"):
            Workdir(path, dataclasses.replace(self.config, epochs=5, seed=1, lam=3.0))

    def test_damaged_files_are_named(self, tmp_path):
        (tmp_path / "flags.cfg").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match="flags.cfg is damaged"):
            Workdir(tmp_path, self.config)
        (tmp_path / "results.json").write_text("{}")
        with pytest.raises(ConfigError, match="results.json is damaged"):
            read_results(tmp_path)

    def test_refuses_files_and_other_peoples_directories(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="is a file"):
            Workdir(tmp_path / "file", self.config)
        with pytest.raises(ConfigError, match=r"holds other files \(file\)"):
            Workdir(tmp_path, self.config)
        with pytest.raises(ConfigError, match="no directory that you may write to"):
            Workdir(tmp_path / "file" / "below", self.config)

    def test_rows_that_will_be_taken_again_are_removed(self, tmp_path):
        run = Workdir(tmp_path / "run", self.config)
        run.start(0)
        for step in (5, 10):
            run.write_metrics("relabel", step, {"head": 0, "changed": 0.5})
            run.write_metrics("train", step, {"loss": 1.0})
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('5\n{"a": 1}\n{"kind": "train", "st')
        run.close()
        run.start(5)
        rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        assert [(row["kind"], row["step"]) for row in rows] == [("train", 5)]

    def test_the_first_labels_are_logged_once_by_a_run_that_starts_over(self, tmp_path):
        run = Workdir(tmp_path / "run", self.config)
        for _ in range(2):
            run.start(0)
            run.write_metrics("first_labels", 0, {"head": 0, "nmi": 0.1})
            run.close()
        assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 1
