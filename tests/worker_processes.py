"""Workers as processes on this machine, joined by TF_CONFIG."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence

from fixtures import ROOT


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at."""
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.create_server(("localhost", 0))) for _ in range(count)]
        return [each.getsockname()[1] for each in sockets]


def environments(count: int) -> list[dict[str, str]]:
    """The environment of each of so many workers."""
    cluster = {"worker": [f"localhost:{port}" for port in free_ports(count)]}
    return [
        {
            **os.environ,
            "CUDA_VISIBLE_DEVICES": "",
            "no_proxy": "localhost",
            "TF_CONFIG": json.dumps({"cluster": cluster, "task": {"type": "worker", "index": i}}),
        }
        for i in range(count)
    ]


class WorkerProcesses:
    """Commands of several workers, and what they print."""

    def __init__(self, commands: Sequence[Sequence[str]], directory: pathlib.Path):
        directory.mkdir(exist_ok=True)
        self._logs = [directory / f"worker-{i}.log" for i in range(len(commands))]
        self.processes = []
        for command, environment, log in zip(commands, environments(len(commands)), self._logs, strict=True):
            with log.open("w") as file:
                started = subprocess.Popen(
                    [sys.executable, *command], cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT
                )
            self.processes.append(started)

    @property
    def said(self) -> list[str]:
        """The output of each worker so far."""
        return [log.read_text() for log in self._logs]

    def statuses(self) -> list[int]:
        """The exit statuses, once all have ended."""
        return [process.wait(timeout=300) for process in self.processes]


@contextlib.contextmanager
def training(
    count: int, workdir: pathlib.Path, flags: Sequence[str], *, own: Mapping[int, Sequence[str]] | None = None
) -> Iterator[WorkerProcesses]:
    """A run of several workers, each of which may have flags of its own."""
    commands = [["-m", "sela_tf.train", f"--workdir={workdir}", *flags, *(own or {}).get(index, ())] for index in range(count)]
    workers = WorkerProcesses(commands, workdir.with_name(f"{workdir.name}-said"))
    try:
        yield workers
    finally:
        for process in workers.processes:
            process.kill()
            process.wait()
