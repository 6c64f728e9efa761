"""Settings, flags, config files, and the wording of errors."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import re

import numpy as np
import pytest
from absl import flags as absl_flags
from fixtures import ROOT

from sela_tf.cli import flags
from sela_tf.cli.wording import in_flags
from sela_tf.settings.choices import ImagesSeen, choose
from sela_tf.settings.commands import ExportConfig, LabelConfig, ProbeConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training.optimizer import learning_rate_schedule

_PATHS = {"dataset", "eval_dataset", "data_dir", "cache_dir", "labels_from", "known_labels", "backbone_weights"}


class Whole:
    """Zero-dimensional, as a scalar of TensorFlow is, and no number."""

    shape = ()

    def item(self):
        return "x"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ({"num_clusters": np.int64(4)}, 4),
        ({"learning_rate": np.float32(0.25)}, 0.25),
        ({"rotation": np.bool_(True)}, True),
        ({"epochs": np.array(3)}, 3),
        ({"lam": 7}, 7),
        ({"cache_dir": pathlib.PurePosixPath("/a/b")}, "/a/b"),
    ],
)
def test_scalars_become_pythons(given, kept):
    ((name, _),) = given.items()
    value = getattr(SelaConfig(dataset="digits", **given), name)
    assert value == kept
    assert type(value) is type(kept)
    json.dumps(value)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_clusters": "4"}, "`num_clusters` must be a whole number. Received: '4'"),
        ({"epochs": 1.5}, "`epochs` must be a whole number. Received: 1.5"),
        ({"epochs": True}, "`epochs` must be a whole number. Received: True"),
        ({"memory_limit": "4"}, "`memory_limit` must be a number. Received: '4'"),
        ({"memory_limit": float("nan")}, "`memory_limit` must be above 0"),
        ({"lam": Whole()}, "`lam` must be a number. Received: 'x'"),
        ({"rotation": 1}, "`rotation` must be True or False. Received: 1"),
        ({"backbone": 18}, "`backbone` must be text. Received: 18"),
        ({"dataset": 3}, "`dataset` must be text. Received: 3"),
        ({"lr_drops": 0.5}, "`lr_drops` must be increasing shares of the epochs. Received: 0.5"),
        ({"lr_drops": "half"}, "`lr_drops` must be increasing shares of the epochs. Received: 'half'"),
        ({"image_size": 100_000}, "`image_size` must be at most 8192"),
    ],
)
def test_values_of_another_kind_are_named(given, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        SelaConfig(**{"dataset": "digits", **given})


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
            "--dataset=digits",
            "--xla",
            "--monitor_epochs=2",
            "--lr_drops=0.25,0.5",
            "--lam=10",
            "--epochs=7",
            "--weight_decay=5e-4",
            "--nodownload",
        )
        (tmp_path / "flags.cfg").write_text(flags.to_flagfile(config))
        assert flags.from_flagfile(tmp_path / "flags.cfg") == config
        assert config.lr_drops == (0.25, 0.5)

    def test_a_list_of_drops_reads_back_too(self, tmp_path):
        (tmp_path / "flags.cfg").write_text(flags.to_flagfile(SelaConfig(dataset="digits", lr_drops=[0.5])))
        assert flags.from_flagfile(tmp_path / "flags.cfg").lr_drops == (0.5,)

    def test_a_run_from_before_there_was_a_choice_has_sgd(self, tmp_path):
        lines = flags.to_flagfile(SelaConfig(dataset="digits", optimizer="lamb")).splitlines()
        assert "--optimizer=lamb" in lines
        (tmp_path / "flags.cfg").write_text("\n".join(line for line in lines if not line.startswith("--optimizer")))
        assert flags.from_flagfile(tmp_path / "flags.cfg").optimizer == "sgd"

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
            ([], "`dataset` is missing"),
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
        with pytest.raises(ConfigError, match=f"`{name}` must be .*{value}"):
            SelaConfig(**{"dataset": "digits", **setting})

    @pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.cfg")), ids=lambda path: path.name)
    def test_config_files(self, path):
        """Every config parses, says in its head what it is, and means what it meant before settings were chosen from images."""
        config = parsed(f"--flagfile={path}")
        text = path.read_text()
        for word in ("Source:", "Command:", "Expected:", "Measured:", "Time:", f"--flagfile=configs/{path.name}"):
            assert word in text, word
        settings = [line.split("=")[0].removeprefix("--") for line in text.splitlines() if line.startswith("--")]
        assert len(set(settings)) == len(settings)
        resolved, choices = choose(config, ImagesSeen(10_000, False, 64, False, 1))
        assert {choice.name for choice in choices} <= {"feature_noise", "feature_dropout"}
        meant = json.loads((ROOT / "tests" / "data" / "configs_of_cf4b11e.json").read_text())[path.stem]
        # Damaged images were all left out, or none.
        meant["max_rejected"] = float(meant.pop("skip_bad_images"))
        then = {name: tuple(value) if isinstance(value, list) else value for name, value in meant.items()}
        now = {name: getattr(resolved, name) for name in then}
        assert {name: value for name, value in now.items() if value != then[name] and name not in _PATHS} == {}

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
        with pytest.raises(ConfigError, match="add `num_relabellings=0`. Received: `num_relabellings=80`"):
            parsed("--dataset=digits", "--labels_from=x.npz", "--num_relabellings=80")
        with pytest.raises(ConfigError, match="exclude each other"):
            parsed("--dataset=digits", "--labels_from=x.npz", "--num_relabellings=0", "--known_labels=y.csv")

    @pytest.mark.parametrize("text", [":", "20", "20-30", "a:b", "-1:5", "1.5:2", "30:20", ":0", "1:2:3"])
    def test_sizes_of_clusters_are_two_numbers(self, text):
        with pytest.raises(ConfigError, match=f"`cluster_sizes={re.escape(text)}`"):
            parsed("--dataset=digits", f"--cluster_sizes={text}")

    def test_sizes_of_clusters_exclude_a_prior(self):
        assert parsed("--dataset=digits", "--cluster_sizes=20:").cluster_sizes == "20:"
        with pytest.raises(ConfigError, match="`cluster_sizes=20:` and `marginals=zipf` both say"):
            parsed("--dataset=digits", "--cluster_sizes=20:", "--marginals=zipf")

    def test_a_share_of_no_rotation_is_refused(self):
        assert parsed("--dataset=digits", "--rotation", "--rotation_share=0.25").rotation_share == 0.25
        with pytest.raises(ConfigError, match="`rotation_share=0.25` needs `rotation`"):
            parsed("--dataset=digits", "--rotation_share=0.25")
        with pytest.raises(ConfigError, match="`rotation_share` must be above 0"):
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
            ([], "`workdir` is missing"), (["--workdir=a", "--knn=0"], "`knn` must be"), (["--workdir=a", "--knn=ten"], "as in 10,50,200"),
            (["--workdir=a", "--kmeans=1"], "`kmeans` must be numbers of clusters from 2. Received: .1"),
            (["--workdir=a", "--ten_crop"], "`ten_crop` needs `protocol=sgd`"), (["--workdir=a", "--drop_epochs=3,2"], "`drop_epochs` must be"),
            (["--workdir=a", "--epochs=0"], "`epochs` must be at least 1"), (["--workdir=a", "--learning_rate=0"], "`learning_rate` must be above 0"),
        ],
    )  # fmt: skip
    def test_refuses_by_name(self, argv, message):
        with pytest.raises(ConfigError, match=message):
            self.parsed(*argv)


class TestWording:
    """The messages of the library name settings in backticks; the command line writes them as its flags."""

    flags = ("num_heads", "report", "dataset", "known_labels")

    @pytest.mark.parametrize(
        ("message", "words"),
        [
            ("`num_heads` must be at least 1. Received: `num_heads=0`", "--num_heads must be at least 1. Received: --num_heads=0"),
            ("leave out `report=False`, or add `report=True`", "leave out --noreport, or add --report"),
            ("`dataset=folder:/a b/c`: no `images`", "--dataset=folder:/a b/c: no `images`"),
            ("`known_labels=`: no path; `fit`, `steps=3`", "--known_labels=: no path; `fit`, `steps=3`"),
            ("num_heads and --report, as they are", "num_heads and --report, as they are"),
        ],
    )
    def test_settings_become_flags_and_nothing_else_does(self, message, words):
        assert in_flags(message, self.flags) == words

    def test_a_caller_has_other_names(self):
        error = ConfigError("`workdir=/a` holds another run; `seed` was 0").renamed(workdir="model")
        assert str(error) == "`model=/a` holds another run; `seed` was 0"

    def test_no_room_below_the_command_line_writes_flags(self):
        """A message of the library is right for those who call it from Python, too."""
        names = {field.name for kind in (SelaConfig, LabelConfig, ProbeConfig, ExportConfig) for field in dataclasses.fields(kind)}
        found = []
        for path in sorted((ROOT / "sela_tf").rglob("*.py")):
            room = path.relative_to(ROOT / "sela_tf").parts[0]
            if room in ("cli", "train.py", "probe.py", "label.py", "export.py", "report.py", "convert.py"):
                continue
            for number, line in enumerate(path.read_text().splitlines(), 1):
                found += [f"{path}:{number}: --{word}" for word in re.findall(r"--(?:no)?([a-z_]+)", line) if word in names]
        assert found == []
