"""The directory of a run and its checkpoints."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from sela_tf.files import saves
from sela_tf.runs.results import read_results
from sela_tf.runs.workdir import Workdir
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig


class TestCheckpoint:
    def test_round_trip_and_keep(self, tmp_path, rng):
        for step in (5, 10, 15):
            saves.save(tmp_path, step, {"a/b": rng.normal(size=3), "n": np.arange(step)}, {"note": "x"}, keep=2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000010", "step-00000015"]
        newest, passed_over = saves.load_newest(tmp_path)
        assert (newest.step, newest.meta["note"], passed_over) == (15, "x", [])
        np.testing.assert_array_equal(newest.arrays["n"], np.arange(15))
        assert set(newest.arrays) == {"a/b", "n"}

    def test_a_second_save_of_a_step_leaves_the_first_until_it_is_whole(self, tmp_path, monkeypatch):
        saves.save(tmp_path, 1, {"n": np.arange(3)}, {}, keep=1)
        with monkeypatch.context() as patch:
            patch.setattr(saves, "write_npz", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                saves.save(tmp_path, 1, {"n": np.arange(4)}, {}, keep=1)
        assert len(saves.load_newest(tmp_path)[0].arrays["n"]) == 3
        saves.save(tmp_path, 1, {"n": np.arange(4)}, {}, keep=1)
        assert len(saves.load_newest(tmp_path)[0].arrays["n"]) == 4
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.1"]

    def test_none(self, tmp_path):
        assert saves.load_newest(tmp_path / "none") == (None, [])

    @pytest.mark.parametrize("damage", ["cut", "flip", "no meta", "cut meta", "another step", "another digest"])
    def test_a_damaged_save_is_passed_over_and_named(self, tmp_path, damage):
        for step in (1, 2):
            saves.save(tmp_path, step, {"n": np.arange(1000) * step}, {}, keep=2)
        state, meta = (tmp_path / "step-00000002" / name for name in ("state.npz", "meta.json"))
        data = bytearray(state.read_bytes())
        if damage == "cut":
            state.write_bytes(data[:-10])
        elif damage == "flip":
            data[500] ^= 1
            state.write_bytes(data)
        elif damage == "no meta":
            meta.unlink()
        elif damage == "cut meta":
            meta.write_text(meta.read_text()[:9])
        else:
            said = json.loads(meta.read_text())
            edited = {"step": 3} if damage == "another step" else {"note": "y"}
            meta.write_text(json.dumps({**said, **edited}))
        newest, passed_over = saves.load_newest(tmp_path)
        assert newest.step == 1
        assert len(passed_over) == 1
        assert "step-00000002" in passed_over[0]

    def test_going_on_from_an_older_save_drops_the_later_ones_and_spares_what_is_no_save(self, tmp_path):
        for step in (100, 200):
            saves.save(tmp_path, step, {"n": np.arange(3)}, {}, keep=2)
        (tmp_path / "step-00000200" / "state.npz").write_bytes(b"x")
        (tmp_path / "step-00000100-mine").mkdir()
        (tmp_path / "step-00000300.zip").write_bytes(b"")
        saves.save(tmp_path, 150, {"n": np.arange(3)}, {}, keep=1)
        assert saves.load_newest(tmp_path)[0].step == 150
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000100-mine", "step-00000150", "step-00000300.zip"]

    def test_what_a_kill_left_is_no_save(self, tmp_path):
        saves.save(tmp_path, 1, {"n": np.arange(3)}, {}, keep=2)
        (tmp_path / ".unfinished-step-00000002").mkdir()
        assert saves.load_newest(tmp_path)[0].step == 1
        saves.save(tmp_path, 2, {"n": np.arange(3)}, {}, keep=2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000001", "step-00000002"]


class TestWorkdir:
    config = SelaConfig(dataset="digits", num_clusters=10, epochs=3)

    def test_belongs_to_one_run(self, tmp_path):
        path = tmp_path / "a" / "run"
        Workdir(path, vars(self.config))
        assert not path.exists()
        first = Workdir(path, vars(self.config))
        first.start(0, self.config)
        longer = Workdir(path, vars(dataclasses.replace(self.config, epochs=5, log_every_steps=7)))
        with pytest.raises(ConfigError, match="in use by process"):
            longer.start(0, longer.config)
        first.close()
        longer.start(0, longer.config)
        longer.close()
        with pytest.raises(ConfigError, match="`epochs` was 5, is 4"):
            Workdir(path, vars(dataclasses.replace(self.config, epochs=4)))
        with pytest.raises(ConfigError, match=r"`seed` was 0, is 1; `lam` was 25.0, is 3|`lam` was 25.0, is 3.*`seed` was 0, is 1"):
            Workdir(path, vars(dataclasses.replace(self.config, epochs=5, seed=1, lam=3.0)))

    def test_damaged_files_are_named(self, tmp_path):
        (tmp_path / "flags.cfg").write_bytes(b"\xff\xfe")
        with pytest.raises(ConfigError, match="flags.cfg is damaged"):
            Workdir(tmp_path, vars(self.config))
        (tmp_path / "results.json").write_text("{}")
        with pytest.raises(ConfigError, match="results.json is damaged"):
            read_results(tmp_path)

    def test_refuses_files_and_other_peoples_directories(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="is a file"):
            Workdir(tmp_path / "file", vars(self.config))
        with pytest.raises(ConfigError, match=r"holds other files \(file\)"):
            Workdir(tmp_path, vars(self.config))
        with pytest.raises(ConfigError, match="no directory that you may write to"):
            Workdir(tmp_path / "file" / "below", vars(self.config))

    def test_rows_that_will_be_taken_again_are_removed(self, tmp_path):
        run = Workdir(tmp_path / "run", vars(self.config))
        run.start(0, self.config)
        for step in (5, 10):
            run.write_metrics("relabel", step, {"head": 0, "changed": 0.5})
            run.write_metrics("train", step, {"loss": 1.0})
        with open(run.path / "metrics.jsonl", "a") as file:
            file.write('5\n{"a": 1}\n{"kind": "train", "st')
        run.close()
        run.start(5, self.config)
        rows = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
        assert [(row["kind"], row["step"]) for row in rows] == [("train", 5)]

    def test_the_first_labels_are_logged_once_by_a_run_that_starts_over(self, tmp_path):
        run = Workdir(tmp_path / "run", vars(self.config))
        for _ in range(2):
            run.start(0, self.config)
            run.write_metrics("first_labels", 0, {"head": 0, "nmi": 0.1})
            run.close()
        assert len((run.path / "metrics.jsonl").read_text().splitlines()) == 1
