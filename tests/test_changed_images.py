"""The images of a run that is taken up, some added and some removed: which are the same, and what is said of them."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from fixtures import ROOT, SMALL, rows, run_door
from sklearn.datasets import load_digits

from sela_tf.data.errors import SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.label_files import places_in_run
from sela_tf.data.splits import hold_out
from sela_tf.data.stores import Arrays
from sela_tf.reporting.changes import changes_of_labels, changes_table

K, T = 4, 2


def images_of(pixels: np.ndarray, names: tuple[str, ...] | None = None) -> ImageSet:
    return ImageSet(name="x", setting="dataset", store=Arrays(pixels), channels=1, names=names)


class TestMatching:
    ROWS = np.array([0, 1, 3, 4])

    def archive(self, images: ImageSet) -> dict[str, np.ndarray]:
        names = {} if images.names is None else {"names": np.array(images.names)}
        return {"source_rows": images.rows, "data_fingerprint": np.array(images.fingerprint()), **names}

    def test_by_name(self, rng):
        pixels = rng.integers(0, 256, (5, 2, 2, 1), dtype=np.uint8)
        run = images_of(pixels, ("a", "b", "é", "d", "e"))
        new = images_of(pixels[:4], ("new", "d", "é", "a"))
        assert places_in_run(new, self.archive(run), setting="`x`").tolist() == [-1, 3, 2, 0]
        with pytest.raises(
            SourceError, match="none of its 5 training images, such as 'a', is among the 4 of `dataset=x`, such as 'p'"
        ):
            places_in_run(images_of(pixels[:4], ("p", "q", "r", "s")), self.archive(run), setting="`x`")

    def test_by_row_where_the_set_begins_as_before(self, rng):
        pixels = rng.integers(0, 256, (9, 2, 2, 1), dtype=np.uint8)
        archive = self.archive(images_of(pixels[:6]).take(self.ROWS))
        grown = images_of(pixels).take(np.array([0, 1, 3, 4, 7, 8]))
        assert places_in_run(grown, archive, setting="`x`").tolist() == [0, 1, 2, 3, -1, -1]
        other = pixels.copy()
        other[3] += 1
        for changed in (images_of(other).take(self.ROWS), images_of(pixels).take(self.ROWS[:3])):
            with pytest.raises(SourceError, match="not the same in their rows of `dataset=x`: put new images behind the old ones"):
                places_in_run(changed, archive, setting="`x`")

    def test_held_out_images_stay_held_out(self, rng):
        """With names wherever the new ones come; without, where they come behind."""
        pixels = np.zeros((300, 2, 2, 1), np.uint8)
        names = tuple(f"{i:03}" for i in range(300))
        few = np.sort(rng.permutation(300)[:200])
        old = hold_out(images_of(pixels[:200], tuple(names[i] for i in few)), 0.2)
        new = hold_out(images_of(pixels, names), 0.2)
        assert set(old[0].names) <= set(new[0].names)
        assert set(old[1].names) <= set(new[1].names)
        old, new = hold_out(images_of(pixels[:200]), 0.2), hold_out(images_of(pixels), 0.2)
        assert set(old[1].rows) <= set(new[1].rows)


class TestChanges:
    def test_against_counting(self, rng):
        before, after = rng.integers(-1, K, (T, 90)), rng.integers(0, K, (T, 90))
        before[:, :9], before[:, 9:] = -1, np.maximum(before[:, 9:], 0)
        removed = np.stack([np.bincount(rng.integers(0, K, 30), minlength=K) for _ in range(T)])
        found = changes_of_labels(before, after, removed=removed, moved_at_start=np.array([5, 6]))
        assert (found["num_added"], found["num_removed"], found["num_kept"], found["num_moved_at_start"]) == (9, 30, 81, [5, 6])
        assert found["num_moved"] == [sum(a != b for a, b in zip(before[t], after[t], strict=True) if a >= 0) for t in range(T)]
        for head in range(T):
            assert {row["cluster"] for row in found["clusters"][head]} == set(range(K))
            for row in found["clusters"][head]:
                pairs, cluster = list(zip(before[head], after[head], strict=True)), row["cluster"]
                assert row["before"] == sum(a == cluster for a, _ in pairs) + removed[head, cluster]
                assert row["left"] == sum(a == cluster != b for a, b in pairs)
                assert row["came"] == sum(a not in (-1, cluster) and b == cluster for a, b in pairs)
                assert row["new"] == sum(a == -1 and b == cluster for a, b in pairs)
                assert row["after"] == row["before"] - row["removed"] - row["left"] + row["came"] + row["new"]
        json.dumps(found)

    def test_in_words(self):
        before, after = np.array([[0, 0, 1, 1, -1]]), np.array([[0, 1, 1, 1, 0]])
        numbers = {"removed": np.array([[0, 3]]), "moved_at_start": np.array([1])}
        told = changes_table(changes_of_labels(before, after, **numbers, cluster_names=np.array([["cats", "dogs"]])))
        assert told.splitlines() == [
            "1 training images are new, 3 are gone; 1 of the 4 others changed their cluster",
            "clusters that changed most (before - removed - left + came + new = after):",
            "cluster  name  before  removed  left  came  new  after",
            "      1  dogs       5        3     0     1    0      3",
            "      0  cats       2        0     1     0    1      2",
        ]
        two = changes_of_labels(*np.repeat([before, after], 2, axis=1), removed=np.zeros((2, 2), int), moved_at_start=np.zeros(2))
        assert "; 1 (head 0), 1 (head 1) of the 4 others changed" in changes_table(two)
        same = changes_of_labels(before[:, :4], before[:, :4], removed=np.zeros((1, 2), int), moved_at_start=np.array([0]))
        assert changes_table(same) == "0 training images are new, 0 are gone; 0 of the 4 others changed their cluster"


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> pathlib.Path:
    """Digits as files: those of `old`, and in `new` without the first hundred and with others."""
    directory = tmp_path_factory.mktemp("folders")
    digits = load_digits()
    for name, places in (("old", range(600)), ("new", range(100, 800))):
        for i in places:
            path = directory / name / str(digits.target[i]) / f"{i:04}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            pixels = np.rint(digits.images[i] * 255 / 16).astype(np.uint8)[..., np.newaxis]
            path.write_bytes(tf.io.encode_png(pixels).numpy())
    return directory


@pytest.mark.slow
def test_a_folder_that_changed(folders, tmp_path):
    """The door, a real kill, and the loss of the first steps."""
    small = [flag for flag in SMALL if "dataset" not in flag]
    old, new = tmp_path / "old", tmp_path / "new"
    few = ("--epochs=8", "--num_relabellings=6", "--evaluate=none", "--monitor_examples=0")
    first = run_door(*small, f"--dataset=folder:{folders / 'old'}", *few, f"--workdir={old}")
    assert first.returncode == 0, first.stderr
    command = [
        f"--continue_from={old}", f"--dataset=folder:{folders / 'new'}", "--epochs=4", "--monitor_epochs=1", "--log_every_steps=1"
    ]  # fmt: skip
    dry = run_door(*command, "--dry_run")
    assert dry.returncode == 0, dry.stderr
    whole = run_door(*command, f"--workdir={tmp_path / 'whole'}")
    assert whole.returncode == 0, whole.stderr
    assert "training images are new," in whole.stdout
    assert "first labels of head 1" in whole.stdout

    losses, continued = ([row["loss"] for row in rows(path) if row["kind"] == "train"] for path in (old, tmp_path / "whole"))
    assert continued[0] == pytest.approx(np.mean(losses[-5:]), rel=0.25)
    assert continued[0] < np.mean(losses[:5]) - 0.2

    process = subprocess.Popen(
        [sys.executable, "-m", "sela_tf.train", *command, f"--workdir={new}"], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and not list((new / "checkpoints").glob("step-*[1-9]*")):
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (new / "results.json").exists()
    # nothing of the earlier run is needed any more
    os.rename(old, tmp_path / "gone")
    again = run_door(f"--workdir={new}")
    assert again.returncode == 0, again.stderr
    assert "continues at step" in again.stdout
    results = [json.loads((path / "results.json").read_text()) for path in (tmp_path / "whole", new)]
    assert results[0]["continued"] == results[1]["continued"]
    found = [dict(np.load(path / "labels.npz")) for path in (tmp_path / "whole", new)]
    np.testing.assert_array_equal(found[0]["labels"], found[1]["labels"])

    told, earlier = results[0]["continued"], dict(np.load(tmp_path / "gone" / "labels.npz"))
    kept = sorted(set(earlier["names"]) & set(found[0]["names"]))
    assert (told["num_kept"], told["num_added"]) == (len(kept), len(found[0]["names"]) - len(kept))
    assert told["num_removed"] == len(earlier["names"]) - len(kept)
    both = [dict(zip(each["names"], each["labels"].T, strict=True)) for each in (earlier, found[0])]
    assert told["num_moved"] == np.sum([both[0][name] != both[1][name] for name in kept], axis=0).tolist()
