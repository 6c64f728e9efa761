"""The console command, recipes by name, --help, and settings that a continued run keeps."""

from __future__ import annotations

import dataclasses
import re
import shutil
import types

import numpy as np
import pytest
from fixtures import ROOT, SMALL, run_here

from sela_tf.cli import main as console
from sela_tf.cli import recipes
from sela_tf.cli.flags import from_flagfile
from sela_tf.runs.flagfile import settings_of_run
from sela_tf.settings.choices import ImagesSeen, choose
from sela_tf.settings.fields import ConfigError
from sela_tf.settings.training import SelaConfig
from sela_tf.training import run as training_run
from sela_tf.training.cost import MONITORS, Part, Rates, fit_to_minutes, parts_of_run, time_in_words


class TestConsole:
    def test_lists_its_commands(self, capsys):
        for argv in ([], ["--help"], ["help"]):
            assert console.main(["sela-tf", *argv]) == 0
            said = capsys.readouterr().out
            assert all(f"sela-tf {name} " in said for name in ("train", "label", "probe", "report", "convert", "export"))

    def test_an_unknown_command_is_named(self, capsys):
        assert console.main(["sela-tf", "trian", "--dataset=x"]) == 2
        assert (
            capsys.readouterr().err == "sela-tf: error: there is no command 'trian': train, label, probe, report, convert, export\n"
        )

    def test_its_commands_are_the_doors(self, capsys):
        assert console.main(["sela-tf", "train", "--epocs=3"]) == 2
        assert "Did you mean: epochs" in capsys.readouterr().err
        assert console.main(["sela-tf", "label", "--help"]) == 0
        assert "--output=" in capsys.readouterr().out


class TestHelp:
    def test_is_grouped_by_purpose(self, capsys):
        from sela_tf import train

        assert train.main(["sela_tf.train", "--help"]) == 0
        text = capsys.readouterr().out
        headings = [line for line in text.splitlines() if re.fullmatch(r"[A-Z].*:", line) and not line.startswith("Trains")]
        assert headings[:4] == ["Images:", "Network:", "Training views:", "Learning:"]
        assert "P is the paper (arXiv 1911.05371), R its reference code" in text
        flat = " ".join(text.split())
        assert "Take more than there are kinds of things" in flat
        names = re.findall(r"^  --(?:\[no\])?(\w+)", text, flags=re.M)
        assert len(names) == len(set(names))
        assert set(names) >= {field.name for field in dataclasses.fields(SelaConfig)} | {"workdir", "minutes", "recipe", "debug"}
        assert all(len(line) <= 150 for line in text.splitlines())


class TestRecipes:
    def test_every_config_is_one(self):
        assert set(recipes.recipes()) == {path.stem for path in (ROOT / "configs").glob("*.cfg")}

    def test_are_listed_with_a_line_each(self, capsys):
        from sela_tf import train

        assert train.main(["sela_tf.train", "--recipe=help"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert [line.split()[0] for line in lines] == sorted(recipes.recipes())
        assert all(20 < len(line) <= 130 for line in lines)

    @pytest.mark.parametrize("form", [["--recipe=digits"], ["--recipe", "digits"], ["--recipe=digits.cfg"]])
    def test_other_flags_win_wherever_they_stand(self, form):
        path = f"--flagfile={ROOT / 'configs' / 'digits.cfg'}"
        assert recipes.with_flagfiles(["x", "--epochs=3", *form]) == (["x", path, "--epochs=3"], False)
        assert recipes.with_flagfiles(["x", "--recipe", "help"]) == (["x"], True)

    def test_an_unknown_one_is_named(self):
        with pytest.raises(ConfigError, match=r"`recipe=digit`: did you mean digits\? `recipe=help` lists them"):
            recipes.with_flagfiles(["x", "--recipe=digit"])
        with pytest.raises(ConfigError, match="needs a name"):
            recipes.with_flagfiles(["x", "--recipe"])

    def test_a_flagfile_cannot_name_one(self, tmp_path, capsys):
        from sela_tf import train

        (tmp_path / "own.cfg").write_text("--recipe=digits\n")
        assert train.main(["sela_tf.train", f"--flagfile={tmp_path}/own.cfg", f"--workdir={tmp_path}/run"]) == 2
        assert "--recipe=digits stands in a flagfile" in capsys.readouterr().err


class TestContinued:
    """A run keeps every setting that is not typed; only typed ones are compared."""

    @pytest.fixture
    def workdir(self, tmp_path):
        lines = [*SMALL, "--seed=5", "--lam=9.0"]
        (tmp_path / "flags.cfg").write_text("\n".join(lines) + "\n")
        return tmp_path

    def test_takes_what_is_not_typed(self, workdir):
        old = from_flagfile(workdir / "flags.cfg")
        config, previous = settings_of_run(workdir, {"dataset": "digits", "epochs": 9})
        assert previous == old
        assert (config.seed, config.lam, config.epochs, config.num_clusters) == (5, 9.0, 9, 16)
        assert settings_of_run(workdir, {})[0] == old

    def test_a_typed_default_is_compared_too(self, workdir):
        with pytest.raises(ConfigError, match="`lam` was 9.0, is 25.0; `seed` was 5, is 0"):
            settings_of_run(workdir, {"seed": 0, "lam": 25.0})

    def test_a_run_from_before_there_was_a_setting(self, workdir):
        assert from_flagfile(workdir / "flags.cfg").monitor_epochs == 1

    @pytest.mark.slow
    def test_by_the_command(self, tmp_path):
        run = f"--workdir={tmp_path / 'run'}"
        first, again, longer, refused = run_here(
            [[*SMALL, "--seed=5", run], [run], [run, "--epochs=3"], [run, "--num_clusters=17"]]
        )
        assert first.returncode == 0, first.stderr
        assert "This run is finished (2 epochs)" in again.stdout
        assert "continues at step 42" in longer.stdout
        assert from_flagfile(tmp_path / "run" / "flags.cfg").seed == 5
        assert refused.returncode == 2
        assert "--num_clusters was 16, is 17" in refused.stderr

    @pytest.mark.slow
    def test_minutes_choose_the_epochs_once(self, tmp_path, monkeypatch):
        """Under rates that are given, which take two seconds to measure: a step of 64 images takes a second."""
        clock = [0.0]

        def measured(experiment) -> Rates:
            clock[0] += 2.0
            return Rates(1 / 64, 0.0, 0.0)

        monkeypatch.setattr(training_run, "measured_rates", measured)
        monkeypatch.setattr(training_run, "time", types.SimpleNamespace(perf_counter=lambda: clock[0]))
        few = [flag for flag in SMALL if not flag.startswith(("--epochs", "--log_every"))] + [
            "--evaluate=none",
            "--num_relabellings=1",
        ]
        run = f"--workdir={tmp_path / 'run'}"
        both, short, done, again = run_here(
            [[*SMALL, run, "--minutes=1"], [*few, run, "--minutes=0.3"], [*few, run, "--minutes=0.9"], [*few, run, "--minutes=5"]]
        )
        assert "--minutes=1 chooses the epochs, and --epochs=2 is given" in both.stderr
        # And the seconds that have passed by then.
        assert "--minutes=0.3 is too short: one epoch and the rest take about 0.38 minutes here" in short.stderr
        # An epoch has 21 steps: two of them take .7 minutes, three 1.05.
        assert "`minutes=0.9`: `epochs=2` of 21 steps, `num_relabellings=1`" in done.stdout
        assert from_flagfile(tmp_path / "run" / "flags.cfg").epochs == 2
        assert "This run is finished (2 epochs)" in again.stdout
        for name in ("results.json", "network.json"):
            (tmp_path / "run" / name).unlink()
        shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000042")
        (continued,) = run_here([[run, "--minutes=5"]])
        assert "`minutes=5` is for a new run: this one keeps its 2 epochs" in continued.stdout
        assert "continues at step 21" in continued.stdout


class TestCost:
    PARTS = (Part("training", 100, 0.6), Part("monitors", 10, 3.0), Part("label passes", 5, 2.0), Part("linear probes", 2, 10.0))

    def test_epochs_that_fit(self):
        """Ten epochs take 90 seconds, the passes of four relabellings and the last 10, all else 20."""
        config, _ = choose(SelaConfig(dataset="x", epochs=10, num_relabellings=4), ImagesSeen(4000, False, 32, True, 3))

        def fit(minutes: float, *, given: bool) -> tuple[int, int]:
            found = fit_to_minutes(minutes, config, list(self.PARTS), relabellings_are_given=given)
            assert dataclasses.replace(found, epochs=10, num_relabellings=4) == config
            return found.epochs, found.num_relabellings

        assert [fit(minutes, given=True) for minutes in (0.66, 1.99, 2.01, 20)] == [(1, 4), (9, 4), (10, 4), (130, 4)]
        # Two relabellings and the last take six seconds.
        assert [fit(minutes, given=False) for minutes in (0.59, 1.0, 20)] == [(1, 2), (3, 2), (124, 30)]
        for given, least in ((True, "0.65"), (False, "0.58")):
            with pytest.raises(ConfigError, match=f"`minutes=0.5` is too short: one epoch and the rest take about {least} minutes"):
                fit(0.5, given=given)

    def test_labels_that_are_given_stay(self):
        config, _ = choose(SelaConfig(dataset="x", epochs=10, labels_from="y"), ImagesSeen(4000, False, 32, True, 3))
        assert fit_to_minutes(1.0, config, list(self.PARTS), relabellings_are_given=False).num_relabellings == 0

    def test_monitors_count_as_often_as_they_look(self):
        config, _ = choose(
            SelaConfig(dataset="x", epochs=10, monitor_epochs=4, evaluate="none"), ImagesSeen(4000, False, 32, True, 3)
        )
        split = types.SimpleNamespace(classes=np.arange(4) % 2)
        experiment = types.SimpleNamespace(
            config=config, data=types.SimpleNamespace(train=split, held_out=split), schedule=lambda steps_per_epoch: []
        )
        parts = parts_of_run(experiment, Rates(1.0, 1.0, 1.0), num_train=4000, num_held_out=500)
        assert [part.times for part in parts if part.name == MONITORS] == [3]

    def test_what_is_done_is_not_counted(self):
        assert time_in_words(list(self.PARTS)).startswith("about 2 minutes from here on this machine (training 50%, monitors 25%")
        # Of 100 seconds that training takes half is done.
        assert time_in_words(list(self.PARTS), done=0.5).startswith("about 1.2 minutes")
