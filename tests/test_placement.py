"""Where a transport runs: chunks on several devices in turn, and what is done otherwise on graphics cards, here on the processor."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import oracle
import pytest
import tensorflow as tf
from fixtures import ROOT, run_python

from sela_tf.transport import newton, scan, solve, table
from sela_tf.transport.assignment import assign_labels
from sela_tf.transport.errors import NotFiniteError
from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.placement import Placement, placed, present
from sela_tf.transport.rounding import balanced_labels
from sela_tf.transport.rows import Rows
from sela_tf.transport.sinkhorn import sinkhorn
from sela_tf.transport.table import Table
from sela_tf.transport.threads import full_float32

CARD = Placement(("CPU:0",), on_cards=True, chunk_entries=2**17)
"""The processor, used as a graphics card would be."""
N, K = 16_000, 70


def _features(rng: np.random.Generator, scale: float = 1.0) -> LinearLogits:
    centres = rng.normal(size=(K, 16))
    features = centres[rng.zipf(1.5, N) % K] + 0.7 * rng.normal(size=(N, 16))
    return LinearLogits(features.astype(np.float32), (scale * centres.T / 4).astype(np.float32), np.zeros(K, np.float32))


def _objective(log_probs: np.ndarray, labels: np.ndarray) -> float:
    return float(np.take_along_axis(log_probs, labels[:, np.newaxis], axis=1).mean(dtype=np.float64))


class TestCards:
    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("kind", "options"),
        [
            ("tensor", {"lam": 10.0}),
            ("half", {}),
            ("sharp", {}),
            ("features", {}),
            ("features", {"memory_limit": 7 * N * K}),
            ("features", {"memory_limit": 3 * N * K}),
            ("matrix", {"known": True}),
        ],
    )
    def test_labels_are_those_of_the_processor(self, rng, kind, options):
        source = log_probs = oracle.log_probs(rng, N, K, spread=4.0 if kind == "sharp" else 1.0)
        if kind == "features":
            source = _features(rng)
            log_probs = source.log_probs()
        elif kind != "matrix":
            source = {"tensor": tf.constant(log_probs), "half": log_probs.astype(np.float16), "sharp": log_probs}[kind]
        if "known" in options:
            options = {"known": np.where(rng.random(N) < 0.1, rng.integers(K, size=N), -1)}
        expected = assign_labels(source, **options)
        with placed(CARD):
            found = assign_labels(source, **options)
        assert found.converged
        assert expected.converged
        # Sharp rows have many labellings as good: the rows in another order change .3 % of the labels on one device.
        is_sharp = kind in ("sharp", "features")
        assert (found.labels == expected.labels).mean() >= (0.995 if is_sharp else 0.999)
        assert found.sizes.max() - found.sizes.min() == (N % K > 0)
        gap = found.rounding_gap + expected.rounding_gap
        assert abs(_objective(log_probs, found.labels) - _objective(log_probs, expected.labels)) <= gap + 1e-6

    @pytest.mark.slow
    def test_labels_of_the_transport_and_those_of_small_problems(self, rng):
        log_probs = oracle.log_probs(rng, N, K, spread=4.0)
        small = log_probs[: 2**20 // K]
        expected = sinkhorn(log_probs, tolerance=1e-5), assign_labels(small)
        with placed(CARD._replace(chunk_entries=2**19)):
            found = sinkhorn(log_probs, tolerance=1e-5), assign_labels(small)
        assert (found[0].labels == expected[0].labels).mean() >= 0.999
        np.testing.assert_allclose(found[0].potentials, expected[0].potentials, atol=0.01)
        np.testing.assert_array_equal(found[1].labels, expected[1].labels)

    def test_the_host_makes_no_lists(self, rng, monkeypatch):
        def fail(*args, **kwargs):
            raise AssertionError("lists were made")

        monkeypatch.setattr(solve, "newton", fail)
        assert newton.newton is not fail
        log_probs = oracle.log_probs(rng, N, K, spread=4.0)
        with pytest.raises(AssertionError, match="lists were made"):
            sinkhorn(log_probs)
        with placed(CARD):
            assert sinkhorn(log_probs).converged

    def test_rows_are_brought_to_the_card_once_where_memory_allows_it(self, rng):
        log_probs = oracle.log_probs(rng, N, K)

        class Counted:
            """A matrix that counts how often each of its rows is read in a slice."""

            shape, dtype = log_probs.shape, log_probs.dtype

            def __init__(self):
                self.times = np.zeros(N, int)

            def __getitem__(self, rows):
                if isinstance(rows, slice):
                    self.times[rows] += 1
                return log_probs[rows]

        reads = {}
        for keep_bytes in (None, log_probs.nbytes // 2):
            source = Counted()
            rows = Rows(Table(source, placement=CARD, keep_bytes=keep_bytes), lam=25.0)
            source.times[:] = 0
            measured = [rows.measure(np.zeros(K)) for _ in range(3)]
            np.testing.assert_allclose(measured[2].log_mass, Rows(log_probs, lam=25.0).measure(np.zeros(K)).log_mass, rtol=1e-5)
            reads[keep_bytes] = source.times
        assert len(rows._starts) > 4
        # The last chunk overlaps the one before.
        own = slice(0, rows._starts[-1])
        assert (reads[None][own] == 1).all()
        kept = reads[keep_bytes][own] == 1
        assert kept[0]
        assert not kept[-1]
        assert 0.3 < kept.mean() < 0.55
        assert (reads[keep_bytes][own][~kept] == 3).all()

    def test_bad_values_are_told_by_their_place(self, rng):
        log_probs = oracle.log_probs(rng, N, K)
        log_probs[9123, 7] = np.nan
        complaints = []
        for placement in (Placement(), CARD):
            with placed(placement):
                for solve_it in (assign_labels, lambda given: balanced_labels(given, np.zeros(K), lam=25.0)):
                    with pytest.raises(NotFiniteError, match="9123") as raised:
                        solve_it(log_probs)
                    complaints.append(str(raised.value))
        assert complaints[:2] == complaints[2:]

    def test_products_are_of_full_float32(self, rng, monkeypatch):
        enabled, seen = tf.config.experimental.tensor_float_32_execution_enabled, []
        before, plain = enabled(), table.float32_tensor

        def noted(values):
            seen.append(enabled())
            return plain(values)

        with placed(CARD):
            source = _features(rng)
            rows = Rows(source, lam=25.0)
            monkeypatch.setattr(table, "float32_tensor", noted)
            rows.measure(np.zeros(K))
        assert seen
        assert not any(seen)
        assert enabled() is before
        with full_float32(), full_float32():
            assert not enabled()
        assert enabled() is before


def test_near_tops_are_the_candidates_of_the_scan(rng):
    log_probs = oracle.log_probs(rng, N, K)
    log_probs[rng.random((N, K)) < 0.1] = -np.inf
    log_probs[5] = -np.inf
    u, known = rng.normal(size=K), np.where(rng.random(N) < 0.2, 3, -1)
    rows = Rows(Table(log_probs, placement=CARD), lam=1.0)

    def scanned(on_cards: Rows | None, most: float) -> tuple[scan.Candidates, np.ndarray]:
        labels = np.full(N, -1)
        given = (u, 0.5, 0.0, known, labels, most, np.float32, np.random.default_rng(1))
        return scan.scan(log_probs, *given, on_cards), labels

    (expected, labels), (found, on_card) = scanned(None, K), scanned(rows, K)
    for name in expected._fields:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name), err_msg=name)
    np.testing.assert_array_equal(on_card, labels)
    assert expected.complete
    assert (labels == -1).any()
    assert (labels >= 0).any()
    # Chunks with too many are left to the host, which leaves some out.
    fewer, _ = scanned(rows, 1.0)
    assert not fewer.complete
    assert len(fewer.column) < len(found.column)

    def pairs(of: scan.Candidates) -> set[int]:
        return {*(np.repeat(of.rows, of.counts) * K + of.column)}

    assert pairs(fewer) < pairs(found)


def test_problems_run_side_by_side_only_where_cards_would_be_idle():
    cards = Placement(tuple("abcdefgh"), on_cards=True, chunk_entries=100)
    cases = [(1, 100, 1), (10, 800, 1), (10, 401, 1), (10, 400, 2), (10, 100, 8), (3, 100, 3), (3, 90, 3)]
    for problems, entries, count in cases:
        places = cards.side_by_side(problems, entries)
        assert len(places) == count, (problems, entries)
        assert sorted(name for place in places for name in place.devices) == list("abcdefgh")
    assert Placement(("a", "b")).side_by_side(5, 1) == [Placement(("a", "b"))]


def test_the_processor_is_the_place_of_a_machine_without_cards():
    assert present() == Placement()
    assert present().num_memories == 1
    with placed(CARD):
        assert present() is CARD
    assert present() == Placement()


_TWO_DEVICES = """
import functools, threading
import keras, numpy as np, tensorflow as tf
tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], [tf.config.LogicalDeviceConfiguration()] * 2)
import oracle, sela_tf
from sela_tf.self_labelling.label_pass import compute_labels
from sela_tf.transport import passes
from sela_tf.transport.assignment import assign_labels
from sela_tf.transport.linear_logits import LinearLogits
from sela_tf.transport.placement import Placement, placed, present
from sela_tf.transport.sinkhorn import sinkhorn

names = tuple(device.name for device in tf.config.list_logical_devices("CPU"))
rng = np.random.default_rng(0)
N, K = 40_000, 60
centres = rng.normal(size=(K, 16))
features = (centres[rng.integers(K, size=N)] + 0.7 * rng.normal(size=(N, 16))).astype(np.float32)
linear = LinearLogits(features, (centres.T / 4).astype(np.float32), np.zeros(K, np.float32))
matrix = linear.log_probs()
known = np.where(rng.random(N) < 0.1, rng.integers(K, size=N), -1)

# chunks on two devices in turn: the transport's bits
used = set()
measure = passes.measure.concrete
passes.measure.concrete = lambda *arguments: lambda *values: (used.add(found[0].device) or found) if (
    found := measure(*arguments)(*values)) else None
for source in (matrix, linear):
    for options in ({}, {"known": known}, {"tolerance": 1e-5, "storage": "float32"}, {"lam": 2.0, "storage": "float16"}, {"lam": 2.0, "storage": "none"}):
        alone = sinkhorn(source, **options)
        with placed(Placement(names)):
            both = sinkhorn(source, **options)
        np.testing.assert_array_equal(both.labels, alone.labels)
        np.testing.assert_array_equal(both.potentials, alone.potentials)
        assert both.num_iterations == alone.num_iterations and both.primal == alone.primal
assert {name[-5:] for name in used} == {"CPU:0", "CPU:1"}, used

# as on two cards
for source in (matrix, linear):
    alone = assign_labels(source, memory_limit=2**30)
    with placed(Placement(names, on_cards=True, chunk_entries=2**18)):
        both = assign_labels(source, memory_limit=2**30)
    assert (both.labels == alone.labels).mean() >= 0.999 and both.converged

# heads side by side on cards that would be idle
T, small = 3, 4000
heads = sela_tf.MultiHead(T, K)
keras.Model(inputs := keras.Input((16,)), heads(inputs))
heads.kernel.assign(np.stack([centres.T / 4] * T, axis=1) + 0.1 * rng.normal(size=(16, T, K)))
places = []
def noted(*arguments, **options):
    places.append((threading.get_ident(), present().devices))
    return assign_labels(*arguments, **options)
table = sela_tf.LabelTable(T, K, small)
run = functools.partial(compute_labels, features[:small], heads, table)
card = Placement(names, on_cards=True, chunk_entries=2**18)
with placed(card):
    side_by_side = run(assign=functools.partial(assign_labels, lam=25.0))
    in_turn = run(assign=noted)
    some = run(assign=assign_labels, only=[2, 0])
assert len({thread for thread, _ in places}) == 1 and {devices for _, devices in places} == {names}
for first, second in zip(side_by_side, in_turn, strict=True):
    assert first.head == second.head
    np.testing.assert_array_equal(first.assignment.labels, second.assignment.labels)
    assert first.metrics == second.metrics
assert [each.head for each in some] == [2, 0]
import sela_tf.self_labelling.label_pass as label_pass
label_pass.assign_labels = noted
places.clear()
with placed(card):
    run(assign=noted)
assert len({thread for thread, _ in places}) == 2 and {devices for _, devices in places} == {names[:1], names[1:]}, places
"""


@pytest.mark.slow
def test_two_devices():
    done = run_python(_TWO_DEVICES, PYTHONPATH="tests")
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_the_check_of_a_card_runs_on_the_processor():
    small = ["--rows=20000", "--clusters=200", "--images=3000", "--epochs=1"]
    command = [sys.executable, "-m", "tools.gpu_check", *small]
    done = subprocess.run([*command, "--pretend"], cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    assert "| the same, labels that are the processor's | 100.00 % |" in done.stdout
    assert "| the same, sizes of the clusters | 100 to 100 |" in done.stdout
    without = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert without.returncode == 2
    assert "TensorFlow sees no graphics card: pip install 'sela-tf[gpu]'" in without.stderr
