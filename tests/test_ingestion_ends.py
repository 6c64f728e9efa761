"""An ingestion that is killed, stopped, or finds no room: it ends, takes its workers along, and the same command does the work."""

from __future__ import annotations

import os
import pathlib
import signal
import subprocess
import sys

import pytest
from disks import small_disk
from fixtures import ROOT, Door, run_here
from ingested import IN_PROCESS, MARKS, PROCESSES, files_of, ingested, make_folder
from processes import Tree

from components.data_ingestion import executor, output
from sela_tf.files.storage import StorageError, storage_errno
from sela_tf.settings.fields import ConfigError
from sela_tf.tasks.lost import WorkerLostError, how_it_ended

pytestmark = MARKS
DOOR = "components.data_ingestion"
BEAM = f"--beam_pipeline_args={','.join(PROCESSES)}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_folder(tmp_path_factory.mktemp("folder") / "images")


@pytest.fixture(scope="module")
def unbroken(folder, tmp_path_factory) -> dict[str, bytes]:
    """The files of an ingestion of the folder that was left alone."""
    records = tmp_path_factory.mktemp("unbroken") / "records"
    ingested(f"folder:{folder}", records, images_per_shard=10)
    return files_of(records)


def is_worker(line: str) -> bool:
    return "sdk_worker_main" in line and not line.startswith("/bin/sh")


@pytest.mark.slow
class TestKilled:
    """Workers in processes, and threads."""

    @pytest.mark.parametrize(("kind", "phase"), [("a worker", "writing"), ("the parent", "writing"), ("a stop", "checking")])
    def test_all_of_it_ends_and_the_same_command_does_the_work(self, folder, unbroken, tmp_path, kind, phase):
        command = [DOOR, f"--dataset=folder:{folder}", f"--examples={tmp_path}/records", "--images_per_shard=10", BEAM]
        with Tree(*command, output=tmp_path / "said") as tree:
            tree.wait_for_words(phase)
            worker = tree.wait_for(is_worker)
            number = signal.SIGTERM if kind == "a stop" else signal.SIGKILL
            os.kill(worker if kind == "a worker" else tree.process.pid, number)
            status, last = tree.ends(), tree.said().splitlines()[-1]
        if kind == "a worker":
            assert status == WorkerLostError.exit_status
            assert last.startswith(f"{DOOR}: error: a worker of Apache Beam was ended by SIGKILL, as the kernel does where memory")
            assert "repeat the command, or with --direct_num_workers=1 in --beam_pipeline_args" in last
            assert "Traceback" not in tree.said()
        elif kind == "the parent":
            assert status == -signal.SIGKILL
        else:
            assert status == 128 + number
            assert last == f"{DOOR}: stopped; nothing was written"
        assert not (tmp_path / "records").exists()
        left = {path.name for path in tmp_path.iterdir()} - {"said"}
        assert left == ({".unfinished-records", ".lock-records"} if kind == "the parent" else set())

        again = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, timeout=600, check=False)
        assert again.returncode == 0, again.stderr
        assert files_of(tmp_path / "records") == unbroken
        assert {path.name for path in tmp_path.iterdir()} == {"said", "records"}

    def test_a_stop_where_beam_is_in_the_same_process(self, folder, tmp_path):
        """Beam takes any exception for a failure of its own."""
        command = [
            DOOR,
            f"--dataset=folder:{folder}",
            f"--examples={tmp_path}/records",
            f"--beam_pipeline_args={','.join(IN_PROCESS)}",
        ]
        with Tree(*command, output=tmp_path / "said") as tree:
            tree.wait_for_words("checking")
            os.kill(tree.process.pid, signal.SIGTERM)
            assert tree.ends() == 128 + signal.SIGTERM
            assert tree.said().splitlines()[-1] == f"{DOOR}: stopped; nothing was written"
        assert {path.name for path in tmp_path.iterdir()} == {"said"}

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
    def test_threads(self, tmp_path, number):
        command = [DOOR, "--dataset=synthetic:30000", f"--examples={tmp_path}/records"]
        with Tree(*command, output=tmp_path / "said") as tree:
            tree.wait_for_words("writing")
            os.kill(tree.process.pid, number)
            status = tree.ends()
        assert status == (-number if number == signal.SIGKILL else 128 + number)
        assert not (tmp_path / "records").exists()
        (again,) = run_here([command[1:]], f"{DOOR}.__main__")
        assert again.returncode == 0, again.stderr
        assert {path.name for path in tmp_path.iterdir()} == {"said", "records"}

    def test_two_at_once(self, folder, tmp_path):
        command = [f"--dataset=folder:{folder}", f"--examples={tmp_path}/records", BEAM]
        with Tree(DOOR, *command, output=tmp_path / "said") as tree:
            tree.wait_for_words("checking")
            (second,) = run_here([command], f"{DOOR}.__main__")
            assert tree.process.wait(600) == 0, tree.said()
        assert second.returncode == ConfigError.exit_status
        assert f"--examples={tmp_path}/records is being written by process {tree.process.pid} on " in second.stderr
        assert files_of(tmp_path / "records")


class TestPlace:
    """The directory appears as a whole, and what was there before is not lost."""

    @pytest.fixture
    def staging(self, tmp_path):
        (tmp_path / ".unfinished-records" / "staging" / "Split-train").mkdir(parents=True)
        (tmp_path / ".unfinished-records" / "staging" / "Split-train" / "shard").write_text("new")
        return str(tmp_path / ".unfinished-records" / "staging")

    @staticmethod
    def put(staging: str, directory: pathlib.Path) -> None:
        made_of = {"component": "data_ingestion"}
        output.put_in_place(os.path.dirname(staging), staging, str(directory), made_of, names=executor._NAMES)

    @pytest.mark.parametrize("before", [(), ("Split-old/shard", "made_of.json"), ("Split-old/shard", "made_of.json", "notes.txt")])
    def test_files_of_others_stay(self, staging, tmp_path, before):
        for name in before:
            (tmp_path / "records" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "records" / name).write_text('{"fingerprint": "old", "component": "data_ingestion"}')
        self.put(staging, tmp_path / "records")
        names = {"Split-train", "made_of.json"} | ({"notes.txt"} & set(before))
        assert {path.name for path in (tmp_path / "records").iterdir()} == names
        assert (tmp_path / "records" / "Split-train" / "shard").read_text() == "new"

    def test_a_kill_at_any_renaming(self, staging, tmp_path, monkeypatch):
        """Killed between two renamings, the old one is found again; the first alone changes nothing."""
        self.put(staging, tmp_path / "records")
        old = files_of(tmp_path / "records")
        os.makedirs(staging)
        rename, done = os.rename, []

        class Killed(BaseException):
            pass

        def kill_after(*paths: str) -> None:
            rename(*paths)
            done.append(paths)
            raise Killed

        monkeypatch.setattr(os, "rename", kill_after)
        with pytest.raises(Killed):
            self.put(staging, tmp_path / "records")
        monkeypatch.undo()
        assert len(done) == 1
        assert not (tmp_path / "records").exists()
        with output.scratch_beside(str(tmp_path / "records")) as scratch:
            assert files_of(tmp_path / "records") == old
            assert os.listdir(scratch) == []

    def test_a_file_system_that_renames_no_directories(self, staging, tmp_path, monkeypatch):
        (tmp_path / "records").mkdir()

        def refuse(*paths: str) -> None:
            raise OSError(16, "Device or resource busy")

        monkeypatch.setattr(os, "rename", refuse)
        self.put(staging, tmp_path / "records")
        assert {path.name for path in (tmp_path / "records").iterdir()} == {"Split-train", "made_of.json"}

    def test_the_second_of_two_is_refused_by_name(self, tmp_path):
        with output.scratch_beside(str(tmp_path / "records")) as scratch:
            with pytest.raises(
                ConfigError, match=f"`examples={tmp_path}/records` is being written by process {os.getpid()} on .*: wait"
            ):
                output.scratch_beside(str(tmp_path / "records")).__enter__()
            assert os.listdir(scratch) == []
        assert list(tmp_path.iterdir()) == []


class TestFullDisk:
    @pytest.fixture
    def disk(self, tmp_path):
        """A file system of 256 kB."""
        with small_disk(tmp_path / "disk", 256) as directory:
            if not os.path.ismount(directory):
                # A limit of the size of files would end Beam's own processes.
                pytest.skip("no disk can be mounted here")
            yield directory

    @pytest.mark.slow
    @pytest.mark.parametrize("arguments", [(), (f"--beam_pipeline_args={','.join(IN_PROCESS)}",), (BEAM,)])
    def test_one_line_and_nothing_left(self, disk, arguments):
        command = ["--dataset=synthetic:2000", f"--examples={disk}/records", *arguments]
        (done,) = run_here([command], f"{DOOR}.__main__")
        assert done.returncode == StorageError.exit_status, done
        assert isinstance(done, Door)
        assert done.stderr.splitlines()[-1].startswith(
            f"{DOOR}: error: {disk}/records cannot be written (No space left on device): nothing was written"
        )
        assert len(done.stderr.splitlines()) == 1, done.stderr
        assert list(disk.iterdir()) == []

    def test_errors_of_others(self):
        """Beam and TensorFlow pass on words; data and settings may have such words in names."""
        assert storage_errno(RuntimeError("ResourceExhausted: x; No space left on device [while running 'Map']")) == 28
        assert storage_errno(ConfigError("No space left on device")) is None
        assert storage_errno(FileNotFoundError(2, "No such file")) is None


def test_how_a_process_ended():
    assert how_it_ended(-9) == how_it_ended(137) == "was ended by SIGKILL, as the kernel does where memory runs out"
    assert how_it_ended(143) == "was ended by SIGTERM"
    assert how_it_ended(1) == "ended with status 1"
