"""Data that changed while a run was stopped: they are noticed, named, refused, and accepted if one says so."""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import shutil

import numpy as np
import pytest
from fixtures import run_here
from PIL import Image

from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.sources import SourceOptions, load_source
from sela_tf.data.splits import hold_out
from sela_tf.data.stores import Arrays
from sela_tf.files import saves
from sela_tf.runs.finished import read_finished, write_finished
from sela_tf.runs.labels import read_labels, write_labels
from sela_tf.runs.network import NetworkDescription
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import Data
from sela_tf.training.provenance import Provenance, network_of

NETWORK = NetworkDescription(
    backbone="resnet8", image_shape=(8, 8, 3), num_heads=1, num_clusters=4, width=4, hidden_units=0, mean=(0.1,) * 3, variance=(0.2,) * 3,
    synchronized=False, dtype=None,
)  # fmt: skip


def edit(path: pathlib.Path) -> None:
    """Changes a pixel; the size of the file, and its time, stay the same to a second."""
    whole, seen = bytearray(path.read_bytes()), path.stat()
    whole[-1] ^= 255
    path.write_bytes(whole)
    os.utime(path, ns=(seen.st_atime_ns, seen.st_mtime_ns + 1))
    assert path.stat().st_size == seen.st_size


@pytest.fixture
def images(tmp_path, rng) -> pathlib.Path:
    """Forty images of two classes, all of one size on the disk."""
    for i in range(40):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i:02d}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)).save(path)
    return tmp_path / "images"


class Run:
    """The checkpoints of a run without a network: what is saved of its data, and what a later call says."""

    def __init__(self, directory: pathlib.Path, **settings):
        self.path, self.settings = directory, {"cache_dir": str(directory / "cache"), **settings}
        self.data = self.load()
        self.save(Provenance(SelaConfig(**self.settings), self.data))

    def load(self) -> Data:
        options = SourceOptions(cache_dir=self.settings["cache_dir"])
        train, held_out = hold_out(load_source(self.settings["dataset"], options, setting="dataset").train, 0.3)
        return Data(train, held_out, (8, 8), np.zeros(3), np.ones(3))

    def save(self, provenance: Provenance) -> None:
        arrays = {f"images/{name}": value for name, value in provenance.state.items()}
        saves.save(self.path / "run", 1, arrays, provenance.meta(NETWORK), keep=1)

    def go_on(self, **settings) -> Provenance:
        saved, _ = saves.load_newest(self.path / "run")
        provenance = Provenance(SelaConfig(**{**self.settings, **settings}), self.load())
        provenance.go_on_from(saved, workdir="W")
        return provenance

    def refused(self, **settings) -> str:
        with pytest.raises(SourceError) as error:
            self.go_on(**settings)
        return str(error.value)


@pytest.fixture
def run(tmp_path, images) -> Run:
    return Run(tmp_path, dataset=f"folder:{images}")


class TestFolder:
    def test_the_same_data_touched_or_not(self, run, images, capsys):
        for path in images.rglob("*.bmp"):
            path.touch()
        assert run.go_on().changes == {}
        saved, _ = saves.load_newest(run.path / "run")
        assert network_of(saved) == NETWORK
        assert "older release" not in capsys.readouterr().out

    @pytest.mark.parametrize(("kind", "words"), [("train", "training"), ("held_out", "held-out")])
    def test_an_edit_that_keeps_the_size_is_named(self, run, images, capsys, kind, words):
        names = getattr(run.data, kind).names
        edit(images / names[3])
        message = run.refused()
        assert message.startswith("`workdir=W`: the data of this run are not the same any more: ")
        assert f"{words} images of `dataset=folder:{images}`: 1 changed ({names[3]}). Restore them" in message
        assert message.endswith("or go on with them as they are now with `accept_changed_data=True`")
        for name in names[4:10]:
            edit(images / name)
        assert f": 7 changed ({', '.join(names[3:8])} and 2 more)" in run.refused()
        accepted = run.go_on(accept_changed_data=True)
        number = {f"{words.replace('-', '_')}_images": 7}
        assert accepted.changes == {"changed_while_training": number}
        assert f"{words} images of `dataset=folder:{images}`: 7 changed" in capsys.readouterr().out
        run.save(accepted)
        assert run.go_on().changes == {"changed_while_training": number}
        edit(images / names[0])
        assert f"1 changed ({names[0]})" in run.refused()
        number = {f"{words.replace('-', '_')}_images": 8}
        assert run.go_on(accept_changed_data=True).changes == {"changed_while_training": number}

    def test_images_that_came_and_went_cannot_be_accepted(self, run, images):
        gone, renamed, edited = run.data.train.names[:3]
        (images / gone).unlink()
        (images / renamed).rename(images / "a" / "x\n.bmp")
        edit(images / edited)
        first = run.data.held_out.names[0]
        (images / "b" / f"{first[2:4]}.bmp.bmp").write_bytes((images / run.data.train.names[4]).read_bytes())
        messages = [run.refused(accept_changed_data=accepted) for accepted in (False, True)]
        new = {"a/x\\n.bmp", f"b/{first[2:4]}.bmp.bmp"}
        for message in messages:
            assert f"1 changed ({edited})" in message
            assert f"2 are gone ({gone}, {renamed})" in message
            assert all(name in message for name in new)
            assert message.endswith("Restore them, or name another directory")

    def test_a_checkpoint_of_an_older_release(self, run, images, capsys):
        """It has the names and sizes of the training images; the next one has the content of all."""
        train = run.data.train
        sized = hashlib.sha256(f"{len(train)} 3".encode() + b"".join(train.store.sized(train.names))).hexdigest()
        shutil.rmtree(run.path / "run")
        saves.save(run.path / "run", 1, {"n": np.arange(3)}, {"data_fingerprint": sized, "num_examples": len(train)}, keep=1)
        edit(images / train.names[1])
        edit(images / run.data.held_out.names[1])
        gone_on = run.go_on()
        said = capsys.readouterr().out
        assert said.count("`workdir=W`: its checkpoint is of an older release, which did not note") == 1
        assert gone_on.changes == {}
        Image.new("RGB", (8, 9)).save(images / train.names[1])
        message = run.refused(accept_changed_data=True)
        assert (
            f"the {len(train)} training images of `dataset=folder:{images}` ({len(train)} now; the checkpoint is too old" in message
        )
        run.save(gone_on)
        assert f"1 changed ({train.names[1]})" in run.refused()

    @pytest.mark.parametrize("setting", ["known_labels", "labels_from", "backbone_weights"])
    def test_a_file_that_the_first_state_is_made_of(self, images, tmp_path, setting):
        file = tmp_path / "file"
        file.write_bytes(b"one")
        run = Run(tmp_path, **{"dataset": f"folder:{images}", setting: str(file), "num_relabellings": 0, "backbone": "resnet8"})
        file.touch()
        assert run.go_on().changes == {}
        file.write_bytes(b"two")
        assert f"not the same any more: `{setting}={file}` was edited. Restore them" in run.refused()
        accepted = run.go_on(accept_changed_data=True)
        assert accepted.changes == {"changed_while_training": {setting: True}}
        # what was made of it is in the checkpoint
        file.unlink()
        run.save(run.go_on())
        file.write_bytes(b"two")
        assert "was edited" in run.refused()


class TestArrays:
    @pytest.fixture
    def arrays(self, tmp_path, rng) -> dict[str, np.ndarray]:
        return {"images": rng.integers(0, 256, (60, 8, 8), dtype=np.uint8), "classes": np.arange(60) % 3}

    @pytest.fixture
    def run(self, tmp_path, arrays) -> Run:
        np.savez(tmp_path / "x.npz", **arrays)
        return Run(tmp_path, dataset=f"npz:{tmp_path / 'x.npz'}")

    def test_rows(self, run, arrays, tmp_path):
        row, held_out = run.data.train.rows[7], run.data.held_out.rows[2]
        arrays["images"][[row, held_out], 0, 0] ^= 1
        np.savez(tmp_path / "x.npz", **arrays)
        message = run.refused()
        assert f"training images of `dataset=npz:{tmp_path / 'x.npz'}`: 1 changed (row {row}); held-out images" in message
        assert f"1 changed (row {held_out})" in message
        accepted = run.go_on(accept_changed_data=True)
        assert accepted.changes == {"changed_while_training": {"training_images": 1, "held_out_images": 1}}
        np.savez(tmp_path / "x.npz", images=arrays["images"][:59], classes=arrays["classes"][:59])
        assert "1 is gone (row 59)" in run.refused(accept_changed_data=True)

    def test_classes(self, run, arrays, tmp_path):
        arrays["classes"][5] += 1
        np.savez(tmp_path / "x.npz", **arrays)
        assert "not the same any more: images have other class labels. Restore" in run.refused()
        assert run.go_on(accept_changed_data=True).changes == {"changed_while_training": {"classes": True}}

    def test_another_order_or_kind(self, tmp_path, rng, run):
        """Labels are those of places, so that another order is not accepted."""
        pixels = rng.integers(0, 256, (9, 2, 2, 1), dtype=np.uint8)
        held_out = ImageSet(name="x", channels=1, store=Arrays(pixels[:3]))

        def of(order: list[int], named: bool = True) -> Provenance:
            train = ImageSet(
                name="x", channels=1, store=Arrays(pixels[order]), names=tuple(f"n{i}" for i in order) if named else None
            )
            accepting = SelaConfig(dataset="digits", accept_changed_data=True)
            return Provenance(accepting, Data(train, held_out, (2, 2), np.zeros(1), np.ones(1)))

        run.save(of([0, 1, 2, 3]))
        saved, _ = saves.load_newest(run.path / "run")
        of([0, 1, 2, 3]).go_on_from(saved, workdir="W")
        with pytest.raises(
            SourceError, match="training images of x: their order is another. Restore them, or name another directory$"
        ):
            of([0, 2, 1, 3]).go_on_from(saved, workdir="W")
        with pytest.raises(SourceError, match="training images of x, which are of another kind of source"):
            of([0, 1, 2], named=False).go_on_from(saved, workdir="W")

    def test_checksums_are_of_the_content(self, rng):
        """Each is one of the row alone, of vectors too, and of arrays that are not contiguous."""
        for pixels in (rng.integers(0, 256, (20, 3, 3, 1), dtype=np.uint8), rng.normal(size=(20, 5)).astype(np.float32)):
            store = Arrays(pixels)
            found = store.checksums()
            assert (found.dtype, len(set(found.tolist()))) == (np.uint64, 20)
            order = rng.permutation(20)
            np.testing.assert_array_equal(store.take(order).checksums(), found[order])
            np.testing.assert_array_equal(Arrays(np.asfortranarray(pixels)).checksums(), found)


@pytest.mark.slow
def test_a_run_notices_refuses_and_goes_on(images, tmp_path):
    """Through the door: a finished run is asked for more epochs after a held-out and a training image were edited."""
    workdir = tmp_path / "run"
    command = [
        f"--dataset=folder:{images}", f"--workdir={workdir}", "--eval_fraction=0.3", "--backbone=resnet8", "--width=4", "--num_heads=1",
        "--num_clusters=4", "--batch_size=8", "--num_relabellings=2", "--learning_rate=0.01", "--norotation", "--noreport",
        f"--cache_dir={tmp_path / 'cache'}", "--image_size=0", "--background=mean", "--evaluate=none",
    ]  # fmt: skip
    first = run_here([[*command, "--epochs=1"]])[0]
    assert first.returncode == 0, first.stderr
    before = json.loads((workdir / "results.json").read_text())
    assert "changed_while_training" not in before["data"]
    labels = read_labels(workdir, (1, 4))
    names = labels["names"].tolist()
    held_out = next(each for each in (f"{'ab'[i % 2]}/{i:02d}.bmp" for i in range(40)) if each not in names)
    edit(images / names[3])
    edit(images / held_out)
    refused, accepted = run_here([[*command, "--epochs=2"], [*command, "--epochs=2", "--accept_changed_data"]])
    assert refused.returncode != 0
    assert len(refused.stderr.splitlines()) == 1
    assert f"1 changed ({names[3]}); held-out images of --dataset=folder:{images}: 1 changed ({held_out})" in refused.stderr
    assert "as they are now with --accept_changed_data" in refused.stderr
    assert accepted.returncode == 0, accepted.stderr
    assert "the run goes on with changed data" in accepted.stdout
    # the network goes on with the statistics and the rules that it has learned with
    after = json.loads((workdir / "results.json").read_text())["data"]
    assert after.pop("changed_while_training") == {"training_images": 1, "held_out_images": 1}
    assert after == before["data"]
    again = read_labels(workdir, (1, 4))
    for name in ("data_fingerprint", "held_out_fingerprint"):
        assert str(again[name]) != str(labels[name])
    # it was accepted once
    assert "--accept_changed_data=false" in (workdir / "flags.cfg").read_text()
    edit(images / held_out)
    once_more = run_here([[*command, "--epochs=3"]])[0]
    assert f"1 changed ({held_out})" in once_more.stderr
    # the report is of the same images, too
    refused = run_here([[f"--workdir={workdir}"]], "sela_tf.report")[0]
    assert "held-out images" in refused.stderr
    edit(images / held_out)
    # the next call knows what was accepted, and keeps the same network
    longer = run_here([[*command, "--epochs=3"]])[0]
    assert longer.returncode == 0, longer.stderr
    described = json.loads((workdir / "results.json").read_text())["data"]
    assert described == {**before["data"], "changed_while_training": {"training_images": 1, "held_out_images": 1}}
    # labels.npz as an older release wrote it
    arrays = {**read_labels(workdir, (1, 4)), "data_fingerprint": np.array(_sized(images, names))}
    del arrays["held_out_fingerprint"]
    write_labels(workdir / "labels.npz", arrays)
    write_finished(workdir, read_finished(workdir)._replace(labels_sha256=None))
    results = json.loads((workdir / "results.json").read_text())
    del results["network"]
    (workdir / "results.json").write_text(json.dumps(results))
    drawn = run_here([[f"--workdir={workdir}"]], "sela_tf.report")[0]
    assert drawn.returncode == 0, drawn.stderr
    assert "the run is older and knows names and sizes of its images only" in drawn.stdout


def _sized(images: pathlib.Path, names: list[str]) -> str:
    """The fingerprint of an older run."""
    parts = b"".join(f"{name}\0{(images / name).stat().st_size}\0".encode() for name in names)
    return hashlib.sha256(f"{len(names)} 3".encode() + parts).hexdigest()
