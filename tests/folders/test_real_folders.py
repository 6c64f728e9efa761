"""Folders as people have them, on the disk: machine-made files, odd names, damaged and foreign images; and what is told of them."""

from __future__ import annotations

import contextlib
import csv
import dataclasses
import os
import pathlib
import sys
import tempfile
import types

import numpy as np
import pyarrow.parquet
import pytest
from fixtures import run_here
from served import encoded, picture

from sela_tf.cli import flags
from sela_tf.commands import label as labeller
from sela_tf.data import folder_contents as contents_module
from sela_tf.data.errors import SourceError
from sela_tf.data.folder_contents import folder_contents
from sela_tf.data.label_files import read_known_labels
from sela_tf.data.sources import SourceOptions, load_source, outline_source
from sela_tf.data.view_statistics import ViewStatistics
from sela_tf.runs.flagfile import given_by, read_config, settings_of_run
from sela_tf.settings.commands import LabelConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.paths import absolute_source
from sela_tf.settings.training import SelaConfig
from sela_tf.training import images
from sela_tf.training import run as trainer

ODD_NAMES = ("a/one, two.png", "a/tail.png ", "a/two\nlines.png", 'b/"q".png', "b/ lead.png", "b/-.png")


def write(root: pathlib.Path, *names: str, side: int = 9) -> pathlib.Path:
    """Writes a picture of its own into each file, in the format of its name."""
    for i, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        kind = {"jpg": "JPEG", "tif": "TIFF"}.get(name.strip().rpartition(".")[2], "PNG")
        (root / name).write_bytes(encoded(picture(np.random.default_rng(i), "RGB", (side, side)), kind))
    return root


@contextlib.contextmanager
def as_an_ordinary_user():
    """A context in which root, who may read every directory, is the user "nobody"; no other user changes."""
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(user)


class TestMachineMade:
    def test_they_are_left_out_and_counted(self, tmp_path, monkeypatch):
        made = ("a/@eaDir/x.png", "#recycle/x.png", "__MACOSX/a/x.png", "$RECYCLE.BIN/x.png", "lost+found/x.png")
        root = write(tmp_path / "images", "a/x.png", "b/x.png", *made)
        for name in ("a/Thumbs.db", "b/desktop.ini", ".thumbnails"):
            (root / name).write_text("no image")
        # A directory that may not be read, as lost+found is, must not be entered.
        entered = []
        walk = os.walk
        monkeypatch.setattr(
            contents_module.os,
            "walk",
            lambda *args, **options: ((entered.append(each[0]), each)[1] for each in walk(*args, **options)),
        )
        splits = load_source(f"folder:{root}")
        assert splits.train.names == ("a/x.png", "b/x.png")
        assert entered == [str(root), f"{root}/a", f"{root}/b"]
        assert (
            "left out, 7 machine-made directories and files: #recycle, $RECYCLE.BIN, @eaDir, Thumbs.db, __MACOSX" in splits.report
        )
        assert outline_source(f"folder:{root}").splits.train.names == splits.train.names
        # older runs were trained on them
        assert len(load_source(f"folder:{root}", SourceOptions(class_level="old")).train) == 7

    def test_another_directory_that_cannot_be_read_is_an_error(self):
        with tempfile.TemporaryDirectory() as directory:
            root = write(pathlib.Path(directory), "a/x.png", "b/x.png")
            root.chmod(0o755)
            (root / "b").chmod(0)
            try:
                with as_an_ordinary_user(), pytest.raises(SourceError, match="b' cannot be read: Permission denied"):
                    folder_contents(str(root), name="here")
            finally:
                (root / "b").chmod(0o755)


class TestOddNames:
    def test_they_are_known_labels(self, tmp_path):
        train = load_source(f"folder:{write(tmp_path / 'images', *ODD_NAMES)}").train
        assert set(train.names) == set(ODD_NAMES)
        with (tmp_path / "known.csv").open("w", newline="") as file:
            csv.writer(file).writerows([("name", "cluster"), *((name, i % 2) for i, name in enumerate(ODD_NAMES))])
        known = read_known_labels(tmp_path / "known.csv", train, 2).labels
        assert dict(zip(train.names, known, strict=True)) == {name: i % 2 for i, name in enumerate(ODD_NAMES)}
        (tmp_path / "known.csv").write_text('name,cluster\n"a/two\nlines.png",1\n a/one.png ,0\n')
        with pytest.raises(SourceError, match="line 4 of"):
            read_known_labels(tmp_path / "known.csv", train, 2)

    def test_blanks_around_a_name_count_only_where_an_image_is_called_so(self, tmp_path):
        train = load_source(f"folder:{write(tmp_path / 'images', 'a/x.png', 'a/x.png ', 'b/y.png')}").train
        (tmp_path / "known.csv").write_text("name,cluster\na/x.png ,1\n b/y.png ,0\n")
        assert read_known_labels(tmp_path / "known.csv", train, 2).labels.tolist() == [-1, 1, 0]

    def test_a_folder_whose_name_a_flagfile_cannot_hold_is_refused(self):
        for name in ("images ", "images\n", "im\nages", "im\rages"):
            with pytest.raises(ConfigError, match="`dataset` must not end with a blank or hold a line break"):
                SelaConfig(dataset=f"folder:/{name}")


class TestWhatIsTold:
    def test_the_largest_classes(self, tmp_path):
        root = write(tmp_path, *(f"c{i:02d}/{j}.png" for i in range(15) for j in range(1 + (i == 7))))
        line = load_source(f"folder:{root}").report[-1]
        assert line.startswith(f"15 classes in folder:{root}: c07 2, c00 1, c01 1, ")
        assert line.endswith("c11 1 and 3 more")
        assert load_source("digits").report == (
            "10 classes in digits: 3 183, 1 182, 5 182, 4 181, 6 181, 9 180, 7 179, 0 178, 2 177, 8 174",
        )
        assert load_source("digits", SourceOptions(use_classes=False)).report == (
            "no classes in digits: `classes=none` leaves them out",
        )

    def test_classes_without_a_training_image_are_told(self, tmp_path):
        root = write(
            tmp_path,
            *(f"{part}/{name}/{i}.png" for part, names in (("train", "xy"), ("test", "xvw")) for name in names for i in range(3)),
        )
        line = load_source(f"folder:{root}").report[-1]
        assert line == f"2 classes in folder:{root}: x 3, y 3; in the images for evaluation only: v, w"

    def test_before_training(self, tmp_path, capsys, monkeypatch):
        monkeypatch.setattr(images, "view_statistics", lambda *args, **options: ViewStatistics(np.zeros(3), np.ones(3), 8, 0, 0))
        root = write(
            tmp_path / "images", *(f"{split}/{name}/{i}.png" for split in ("train", "test") for name in "ab" for i in range(4))
        )
        images.load_data(SelaConfig(dataset=f"folder:{root}", crop_scale=0.5))
        assert f"2 classes in folder:{root}: a 4, b 4\n" in capsys.readouterr().out

    def test_all_that_is_left_out(self, tmp_path):
        root = write(tmp_path / "images", *(f"a/{i}.png" for i in range(9)), *(f"b/{i}.tif" for i in range(7)))
        (root / "a" / "cut, short.png").write_bytes((root / "a" / "0.png").read_bytes()[:60])
        (root / "a" / "x.pcx").write_bytes(encoded(picture(np.random.default_rng(0)), "PCX"))
        with pytest.raises(
            SourceError, match=r"1 of 18 images cannot be read, `max_rejected=0.05`: .*leave them out with `max_rejected=0.056`"
        ):
            load_source(f"folder:{root}", SourceOptions(max_rejected=0.05))
        splits = load_source(f"folder:{root}", SourceOptions(max_rejected=0.056))
        reasons = dict(splits.rejected)
        assert len(reasons) == 9
        assert reasons["a/cut, short.png"] == "a damaged or cut png"
        assert reasons["a/x.pcx"] == "pcx: convert it to png"
        assert reasons["b/6.tif"].startswith("tiff: ")
        assert f"and 3 more. `sela-tf convert` with `input={root}` writes a folder in which they are png" in splits.report[1]

    @pytest.mark.slow
    def test_it_is_written_in_full_by_every_command(self, tmp_path):
        good = [f"{name}/{i}, {i} .png" for name in ("a, b", "x\n$^_") for i in range(20)]
        root = write(tmp_path / "images, all", *good, *(f"a, b/{i}.tif" for i in range(7)))
        (root / "x\n$^_" / "cut.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(50))
        run = str(tmp_path / "run")
        train = [
            f"--dataset={root}", "--skip_bad_images", f"--workdir={run}", "--backbone=resnet8", "--width=4", "--num_heads=1", "--num_clusters=4",
            "--batch_size=8", "--epochs=1", "--num_relabellings=1", "--eval_fraction=0.3",
        ]  # fmt: skip
        (trained,) = run_here([train])
        assert trained.returncode == 0, trained.stderr
        assert f"'{root}' is taken for folder:{root}\n" in trained.stdout
        assert "--skip_bad_images is the old name of --max_rejected=1\n" in trained.stdout
        (labelled,) = run_here(
            [[f"--workdir={run}", f"--output={tmp_path}/labels.csv", f"--dataset={root}", "--max_rejected=0.1"]], "sela_tf.label"
        )
        assert labelled.returncode == 0, labelled.stderr
        (probed,) = run_here([[f"--workdir={run}", f"--dataset={root}", "--max_rejected=1", "--stages=embedding"]], "sela_tf.probe")
        assert probed.returncode == 0, probed.stderr
        with open(f"{tmp_path}/labels.csv", newline="") as opened:
            assert [row["name"] for row in csv.DictReader(opened)] == sorted(good, key=lambda name: name.split("/"))
        assert (tmp_path / "run" / "report.png").exists()
        for file in (f"{run}/left_out.csv", f"{tmp_path}/labels.csv.left_out.csv", f"{run}/probes_left_out.csv"):
            with open(file, newline="") as opened:
                rows = list(csv.reader(opened))
            assert rows[0] == ["name", "reason"]
            assert [name for name, _ in rows[1:]] == [*(f"a, b/{i}.tif" for i in range(7)), "x\n$^_/cut.png"]
        (refused,) = run_here([[f"--workdir={run}", f"--output={tmp_path}/labels.csv", f"--dataset={root}"]], "sela_tf.label")
        assert "1 of 48 images cannot be read, --max_rejected=0: x\\n$^_/cut.png" in refused.stderr


class TestSourcesByPath:
    def test_directories_and_archives(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        known = types.SimpleNamespace(list_builders=lambda **options: ["mnist"])
        monkeypatch.setitem(sys.modules, "tensorflow_datasets", known)
        for name in ("images/deep", "mnist", "digits"):
            (tmp_path / name).mkdir(parents=True)
        np.savez(tmp_path / "x.npz", images=np.zeros((3, 4, 4), np.uint8))
        told: list[str] = []
        for given, wanted in (
            (f"{tmp_path}/images", f"folder:{tmp_path}/images"),
            ("images/deep", f"folder:{tmp_path}/images/deep"),
            ("./mnist", f"folder:{tmp_path}/mnist"),
            ("images", f"folder:{tmp_path}/images"),
            ("x.npz", f"npz:{tmp_path}/x.npz"),
            ("mnist", "mnist"),
            ("digits", "digits"),
            ("none", "none"),
            ("none/deep", "none/deep"),
            ("", ""),
            ("folder:images", f"folder:{tmp_path}/images"),
        ):
            assert absolute_source(given, tell=told.append) == wanted
        assert told[3] == f"'images' is taken for folder:{tmp_path}/images"
        for path in (f"{tmp_path}/none", "./none", "~/none of these"):
            with pytest.raises(SourceError, match=f"`dataset={path}`: there is no such directory or npz file"):
                load_source(path)
        assert len(told) == 5


class TestOlderRuns:
    """Their flags.cfg names neither `class_level` nor `max_rejected`."""

    @pytest.mark.parametrize(
        ("old", "value"), [("--skip_bad_images=true", 1.0), ("--skip_bad_images=false", 0.0), ("--noskip_bad_images", 0.0)]
    )
    def test_settings(self, tmp_path, capsys, old, value):
        new = SelaConfig(
            dataset="folder:/images", max_rejected=value, class_level="old", background="old", monitor_epochs=1
        ).absolute()
        lines = flags.to_flagfile(new).splitlines()
        assert f"--max_rejected={value}" in lines
        kept = [line for line in lines if not line.startswith(("--max_rejected", "--class_level", "--background", "--monitor"))]
        (tmp_path / "flags.cfg").write_text("\n".join([*kept, old]) + "\n")
        assert read_config(tmp_path) == new
        assert capsys.readouterr().out == ""
        asked = dataclasses.replace(new, class_level="auto", background="white")
        assert settings_of_run(tmp_path, given_by(asked)) == (new, new)
        for level in ("auto", "2"):
            with pytest.raises(ConfigError, match=f"`class_level` was 'old', is '{level}'"):
                settings_of_run(tmp_path, {"class_level": level})
        assert settings_of_run(tmp_path / "new", given_by(asked)) == (asked.absolute(), None)

    def test_what_a_level_may_be(self):
        for level in ("0", "-1", "second", "²", ""):
            with pytest.raises(ConfigError, match="`class_level` must be auto, parent, or a number from 1"):
                SelaConfig(dataset="digits", class_level=level)

    @pytest.mark.slow
    def test_one_is_continued_labelled_and_probed_with_its_images(self, tmp_path):
        names = [f"{part}/{name}/{i}.png" for part in ("Training_images", "Test_images") for name in ("a", "b") for i in range(10)]
        root = write(tmp_path / "images", *names, "Test_images/a/@eaDir/0.png")
        config = SelaConfig(
            dataset=f"folder:{root}", class_level="old", backbone="resnet8", width=4, num_heads=1, num_clusters=4, batch_size=8, epochs=1,
            num_relabellings=1, eval_fraction=0.3, report=False,
        )  # fmt: skip
        results = trainer.run(config, tmp_path / "run")
        assert results["data"]["num_training_images"] + results["data"]["num_held_out_images"] == 41
        flagfile = tmp_path / "run" / "flags.cfg"
        kept = [line for line in flagfile.read_text().splitlines() if not line.startswith(("--class_level", "--max_rejected"))]
        flagfile.write_text("\n".join([*kept, "--skip_bad_images=false"]) + "\n")
        again = trainer.run(dataclasses.replace(config, class_level="auto", epochs=2), tmp_path / "run")
        assert again["data"] == results["data"]
        assert "--class_level=old\n" in flagfile.read_text()
        labeller.label_run(LabelConfig(workdir=str(tmp_path / "run"), output=str(tmp_path / "labels.parquet")))
        assert set(pyarrow.parquet.read_table(tmp_path / "labels.parquet")["name"].to_pylist()) == {
            *names,
            "Test_images/a/@eaDir/0.png",
        }
        (probed,) = run_here([[f"--workdir={tmp_path / 'run'}", "--stages=embedding"]], "sela_tf.probe")
        assert probed.returncode == 0, probed.stderr
