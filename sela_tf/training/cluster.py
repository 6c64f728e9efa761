"""The processes that train together, as TF_CONFIG names them: `Cluster`, their first meeting, and the watch over them."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

from sela_tf.settings.fields import ConfigError

TF_CONFIG = "TF_CONFIG"
"""The environment variable that launchers set. TensorFlow documents it at `tf.distribute.cluster_resolver.TFConfigClusterResolver`."""

_JOBS = ("chief", "worker")
_PAUSE, _PATIENCE_OF_CONNECTION = 0.5, 5.0
_SECONDS_BETWEEN_LOOKS, _LOOKS_IN_VAIN = 5.0, 3


class LostWorkerError(RuntimeError):
    """A worker of a training is not there, or is there no more."""

    exit_status = 5
    """The exit status of a command that ends with this error."""


class Cluster(NamedTuple):
    """The processes that train together. The first of them is the chief, which alone writes."""

    addresses: tuple[str, ...]
    """The address of each, HOST:PORT."""
    task: int
    """The number of this process, from 0."""

    @property
    def others(self) -> list[int]:
        """The numbers of the other processes."""
        return [index for index in range(len(self.addresses)) if index != self.task]

    def name(self, index: int) -> str:
        """Returns the name of a process for messages."""
        return f"worker {index} ({self.addresses[index]})"


def cluster_of(environment: Mapping[str, str]) -> Cluster | None:
    """Returns the cluster that TF_CONFIG describes; None where it names no other process.

    Raises:
        ConfigError: it is no such description, or has jobs that this training does not know.
    """
    text = environment.get(TF_CONFIG, "")
    if not text:
        return None
    try:
        told = json.loads(text)
        jobs: dict[str, list[str]] = told.get("cluster", {})
        task: dict[str, Any] = told.get("task", {})
        if not jobs:
            return None
        unknown = sorted(set(jobs) - set(_JOBS))
        kind, index = task["type"], int(task["index"])
        addresses = [address for job in _JOBS for address in jobs.get(job, [])]
        if not unknown and kind in jobs and not 0 <= index < len(jobs[kind]):
            raise ValueError(f"task {kind} {index} is none of the {len(jobs[kind])} in the cluster")
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ConfigError(
            f"{TF_CONFIG} must be as {{'cluster': {{'worker': ['HOST:PORT', …]}}, 'task': {{'type': 'worker', 'index': 0}}}}. "
            f"Received: {text!r} ({error})"
        ) from error
    if unknown or kind not in jobs:
        raise ConfigError(
            f"{TF_CONFIG} may have the jobs {' and '.join(_JOBS)}, and the task must be one of them. Received: "
            f"{', '.join(jobs)}; task {kind}"
        )
    wrong = [address for address in addresses if not isinstance(address, str) or not address.rpartition(":")[2].isdigit()]
    if wrong:
        raise ConfigError(f"{TF_CONFIG}: an address must be HOST:PORT. Received: {wrong[0]!r}")
    if len(set(addresses)) < len(addresses):
        raise ConfigError(f"{TF_CONFIG}: two processes have the same address. Received: {', '.join(addresses)}")
    if len(addresses) == 1:
        return None
    return Cluster(tuple(addresses), index + (len(jobs.get("chief", [])) if kind == "worker" else 0))


def meet(cluster: Cluster, *, seconds: float) -> None:
    """Waits until every process of the cluster listens at its address: TensorFlow would wait for ever.

    Raises:
        LostWorkerError: one does not within so many seconds.
        ConfigError: this process cannot listen at its own address.
    """
    port = int(cluster.addresses[cluster.task].rpartition(":")[2])
    try:
        listener = socket.create_server(("", port))
    except OSError as error:
        raise ConfigError(
            f"{TF_CONFIG}: this process is {cluster.name(cluster.task)}, and cannot listen there ({error.strerror or error})"
        ) from error
    deadline, missing = time.monotonic() + seconds, list(cluster.others)
    with listener:
        while missing:
            missing = [index for index in missing if not _listens(cluster.addresses[index])]
            if missing and time.monotonic() > deadline:
                raise LostWorkerError(
                    f"{', '.join(map(cluster.name, missing))} did not come within {seconds:g} s: start all {len(cluster.addresses)} "
                    "processes, or look at their messages and at the network between them"
                )
            if missing:
                time.sleep(_PAUSE)


def _listens(address: str, *, speaks: bool = False) -> bool:
    """Returns True if a process listens at an address; with `speaks`, if it also says something.

    TensorFlow's server greets whoever connects, before it is told anything. One whose process was stopped does not: the system still takes
    connections for it.
    """
    host, _, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_PATIENCE_OF_CONNECTION) as connection:
            return not speaks or bool(connection.recv(1))
    except OSError:
        return False


@contextlib.contextmanager
def watched(cluster: Cluster) -> Iterator[None]:
    """Ends this process, with the status of `LostWorkerError`, when another one of the cluster is gone or stands still while the context lasts.

    TensorFlow's own messages wait for minutes, or for ever, for a process that is gone; in a label pass or while images are read nothing is
    sent at all.
    """
    over = threading.Event()

    def look() -> None:
        in_vain, has_spoken = dict.fromkeys(cluster.others, 0), dict.fromkeys(cluster.others, False)
        while not over.wait(_SECONDS_BETWEEN_LOOKS):
            for index in cluster.others:
                # At first only the listener of `meet` may be there.
                is_there = _listens(cluster.addresses[index], speaks=has_spoken[index])
                has_spoken[index] = has_spoken[index] or (is_there and _listens(cluster.addresses[index], speaks=True))
                in_vain[index] = 0 if is_there else in_vain[index] + 1
                if in_vain[index] == _LOOKS_IN_VAIN and not over.is_set():
                    end_for(cluster, index)

    thread = threading.Thread(target=look, daemon=True, name="watch over workers")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def end_for(cluster: Cluster, index: int) -> None:
    """Ends this process at once because another one is gone: a message that waits for it cannot be called off."""
    print(f"\nsela_tf.train: error: {gone(cluster, [index])}", file=sys.stderr, flush=True)
    sys.stdout.flush()
    os._exit(LostWorkerError.exit_status)


def gone(cluster: Cluster, missing: list[int]) -> str:
    """Returns the message about processes that are gone."""
    names = ", ".join(map(cluster.name, missing))
    return f"{names} is gone, or stands still. Start all {len(cluster.addresses)} processes again: the run goes on from its newest checkpoint"


def missing_of(cluster: Cluster) -> list[int]:
    """Returns the processes that do not listen any more."""
    return [index for index in cluster.others if not _listens(cluster.addresses[index])]
