"""Files of a run that were changed: a mistake is named with the file, whatever the change is."""

from __future__ import annotations

import contextlib
import copy
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sela_tf.files.archives import read_npz, write_npz
from sela_tf.files.digests import digest_of_json
from sela_tf.reporting.history import training_history
from sela_tf.reporting.page.charts import charts_of
from sela_tf.reporting.results_check import check_results
from sela_tf.reporting.tables import results_table
from sela_tf.runs.labels import read_labels
from sela_tf.runs.names import LABELS, NETWORK, RESULTS
from sela_tf.runs.network import NetworkDescription, describe_older_run, load_run, read_description
from sela_tf.runs.results import read_results
from sela_tf.settings.fields import ConfigError

OLD_RUN = pathlib.Path(__file__).parent.parent / "data" / "run_of_cf4b11e"
OTHERS = [None, [], {}, "x", 7, -1, 1.5, True, [None], ["x"], [[1]], {"x": None}, float("nan"), 10**30]
"""Values that take the place of a right one."""
REMOVED = object()


@pytest.fixture(scope="module")
def old_run(tmp_path_factory) -> pathlib.Path:
    path = tmp_path_factory.mktemp("old") / "run"
    shutil.copytree(OLD_RUN, path)
    describe_older_run(path)
    return path


def places(value: Any, path: tuple = ()) -> Iterator[tuple]:
    """The paths of all values within a JSON value."""
    if path:
        yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*path, key))


def changed(value: Any, path: tuple, new: Any) -> Any:
    value = copy.deepcopy(value)
    inner = value
    for key in path[:-1]:
        inner = inner[key]
    if new is REMOVED:
        del inner[path[-1]]
    else:
        inner[path[-1]] = new
    return value


def only(error: type[Exception], read: Callable[[], Any]) -> bool:
    """Reads what may be damaged: no other error than this one comes. True if it came."""
    with contextlib.suppress(error):
        read()
        return False
    return True


@pytest.fixture(scope="module")
def results(old_run) -> dict:
    return read_results(old_run)


class TestResults:
    def test_every_value_changed(self, results):
        """All that can be shown of them is shown by the check itself, so that nothing is left to fail later."""
        count = 0
        for path in places(results):
            if path[0] == "config" and len(path) > 1 and path[1] not in ("epochs", "num_clusters", "evaluate"):
                continue
            for new in (REMOVED, *OTHERS):
                other = changed(results, path, new)
                if not only(ValueError, lambda other=other: check_results(other)):
                    results_table(other)
                count += 1
        assert count > 500

    @pytest.mark.parametrize("text", [b"", b"[]", b"{", b"\xff", b"[" * 100_000, b"{}", b"null", b'{"trained": 1}'])
    def test_the_file_is_named(self, old_run, tmp_path, text):
        (tmp_path / RESULTS).write_bytes(text)
        with pytest.raises(ConfigError, match=rf"{RESULTS} is damaged \(.*remove it and repeat the command"):
            read_results(tmp_path)

    @pytest.mark.parametrize("key", ["image_shape", "mean", "variance"])
    def test_what_older_runs_keep_of_their_network(self, tmp_path, results, key):
        shutil.copytree(OLD_RUN, tmp_path / "run")
        for new in (REMOVED, *OTHERS):
            (tmp_path / "run" / RESULTS).write_text(json.dumps(changed(results, ("data", key), new)))
            with pytest.raises(ConfigError, match="is damaged"):
                read_description(tmp_path / "run")


def signed(described: object) -> str:
    """A description with the digest of its own that whoever changes it can compute as well."""
    if not isinstance(described, dict):
        return json.dumps(described)
    rest = {name: value for name, value in described.items() if name != "sha256"}
    return json.dumps({**rest, "sha256": digest_of_json(rest)})


class TestNetwork:
    @staticmethod
    def is_refused(described: dict) -> bool:
        return only(ValueError, lambda: NetworkDescription.from_json(described))

    def test_every_value_changed(self, old_run):
        described = read_description(old_run).to_json()
        described = json.loads(
            json.dumps({**described, "pixel_rules": {"background": [255, 255, 255], "largest": 65535, "shorter_side": 0}})
        )
        assert NetworkDescription.from_json(described).to_json()
        for path in places(described):
            refused = [self.is_refused(changed(described, path, new)) for new in OTHERS]
            assert sum(refused) > len(OTHERS) / 2, path
        for name in set(described) - {"pixel_rules"}:
            assert self.is_refused(changed(described, (name,), REMOVED)), name
        for name, new in (
            ("mean", [float("nan")]),
            ("variance", [float("inf")]),
            ("variance", [0.0]),
            ("mean", [1.0, 2.0]),
            ("other", 1),
        ):
            with pytest.raises(ValueError, match=name):
                NetworkDescription.from_json({**described, name: new})

    def test_the_file_is_named(self, old_run, tmp_path):
        shutil.copytree(old_run, tmp_path / "run")
        found = json.loads((old_run / NETWORK).read_text())
        for path in places(found):
            for new in (REMOVED, None, [], {}, "x", 7):
                (tmp_path / "run" / NETWORK).write_text(signed(changed(found, path, new)))
                only(ConfigError, lambda: read_description(tmp_path / "run"))
                if path[0] != "network":
                    only(ConfigError, lambda: read_labels(tmp_path / "run", (2, 8)))
        (tmp_path / "run" / NETWORK).write_text(signed(changed(found, ("weights_sha256",), "x")))
        with pytest.raises(ConfigError, match="not the weights"):
            load_run(tmp_path / "run")

    def test_nan_in_the_mean_is_not_used(self, old_run, tmp_path):
        shutil.copytree(old_run, tmp_path / "run")
        found = json.loads((old_run / NETWORK).read_text())
        found["network"]["mean"] = [0.0]
        (tmp_path / "run" / NETWORK).write_text(json.dumps(found))
        with pytest.raises(ConfigError, match=r"network.json is damaged \(it was changed since it was written\)"):
            load_run(tmp_path / "run")
        found["network"]["mean"] = [float("nan")]
        (tmp_path / "run" / NETWORK).write_text(signed(found))
        with pytest.raises(ConfigError, match=r"network.json is damaged \(mean must be 1 finite numbers. Received: \[nan\]"):
            load_run(tmp_path / "run")


def test_every_array_of_the_labels_changed(old_run, tmp_path):
    arrays = read_npz(old_run / LABELS)
    read_labels(old_run, (2, 8))
    shutil.copy(old_run / NETWORK, tmp_path)
    others = [
        np.array("x"), np.array(1), np.array(np.nan), np.array(np.inf), np.zeros((0,)), np.full((2, 8), np.nan), np.array([["x"]]),
        np.zeros((2, 3, 4)), np.zeros(arrays["labels"].shape), np.full(arrays["labels"].shape, 9), np.array([True]), np.array(b"x"),
    ]  # fmt: skip
    for name in arrays:
        for new in others:
            write_npz(tmp_path / LABELS, {**arrays, name: new})
            might_be = new.shape == arrays[name].shape and new.dtype.kind == arrays[name].dtype.kind
            if might_be or name == "training_labels":
                only(ConfigError, lambda: read_labels(tmp_path, (2, 8)))
                continue
            with pytest.raises(ConfigError, match=f"{LABELS} is missing or damaged"):
                read_labels(tmp_path, (2, 8))
    for new in (np.inf, np.nan, 0.0, -1.0):
        write_npz(tmp_path / LABELS, {**arrays, "lam": np.float32(new)})
        with pytest.raises(ConfigError, match="lam that do not belong"):
            read_labels(tmp_path, (2, 8))


def test_every_value_of_the_metrics_changed():
    rows = [json.loads(line) for line in (OLD_RUN / "metrics.jsonl").read_text().splitlines()]
    rows.append({"kind": "warning", "step": 4, "message": "the loss does not fall"})
    kinds = {row["kind"]: i for i, row in enumerate(rows)}
    report = {"num_clusters": 8, "cluster_sizes": []}
    for i in kinds.values():
        for path in places(rows[i]):
            if path == ("kind",) or path == ("step",):  # rows without these are none, see `Workdir.rows`
                continue
            for new in (REMOVED, *OTHERS):
                other = [*rows[:i], changed(rows[i], path, new), *rows[i + 1 :]]

                def draw(other: list = other) -> None:
                    history = training_history(other, num_heads=2)
                    assert all(isinstance(row["message"], str) for row in other if row["kind"] == "warning")
                    charts_of({**report, **history})

                only(ValueError, draw)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_json_in_any_place(old_run, tmp_path, data):
    name = data.draw(st.sampled_from([RESULTS, NETWORK]))
    value = json.loads((old_run / name).read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(list(places(value))))
        value = changed(value, path, data.draw(JSON | st.just(REMOVED)))
    shutil.copy(old_run / "flags.cfg", tmp_path)
    (tmp_path / name).write_text(json.dumps(value))
    read = read_results if name == RESULTS else read_description
    if not only(ConfigError, lambda: read(tmp_path)) and name == RESULTS:
        results_table(read_results(tmp_path))
