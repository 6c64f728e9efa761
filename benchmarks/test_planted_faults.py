"""Planted faults: they are where they are said to be, and what is shown is judged rightly."""

from __future__ import annotations

import pathlib

import numpy as np
import pytest

from benchmarks.planted_faults import planting
from benchmarks.planted_faults.judging import found, natural_copies, ordered_pairs
from benchmarks.planted_faults.planting import NUM_FAULTS, SETS, Fault, plant
from benchmarks.planted_faults.table import goals, pairs_table, table


@pytest.fixture
def planted(monkeypatch) -> planting.Planted:
    # What lies in files is not needed.
    monkeypatch.setitem(planting._FOREIGN, "digits", ("photograph", "noise"))
    return plant("digits", 1, pathlib.Path())


def test_faults_are_where_they_are_said_to_be(planted):
    images, faults = planted
    clean = SETS["digits"](pathlib.Path())
    assert {kind: sum(fault.kind == kind for fault in faults) for kind in NUM_FAULTS} == NUM_FAULTS
    assert len({fault.image for fault in faults}) == sum(NUM_FAULTS.values())
    rows = {pixels.tobytes(): row for row, pixels in enumerate(clean.pixels)}
    for fault in faults:
        pixels = images.pixels[fault.image]
        if fault.kind == "class":
            assert fault.how == f"{clean.classes[rows[pixels.tobytes()]]} to {images.classes[fault.image]}"
        elif fault.kind == "duplicate":
            assert images.classes[fault.of] == images.classes[fault.image]
            assert (fault.how == "same") == np.array_equal(images.pixels[fault.of], pixels)
            assert np.corrcoef(images.pixels[fault.of].ravel(), pixels.ravel())[0, 1] > 0.3
        else:
            assert pixels.tobytes() not in rows
    others = np.setdiff1d(np.arange(len(images.classes)), [fault.image for fault in faults])
    again = [rows[images.pixels[row].tobytes()] for row in others]
    np.testing.assert_array_equal(clean.classes[again], images.classes[others])
    np.testing.assert_array_equal(clean.held_out[again], images.held_out[others])


def test_a_duplicate_is_found_where_both_are_in_one_entry():
    faults = [Fault("class", "", 1), Fault("duplicate", "same", 5, 6), Fault("foreign", "", 9)]
    assert found([[1], [5], [6, 7], [9, 2]], faults) == {"class": 1, "duplicate": 0, "foreign": 1}
    assert found([[6, 5, 7]], faults) == {"class": 0, "duplicate": 1, "foreign": 0}
    assert found([[0]] * 100 + [[1]], faults)["class"] == 0
    pixels = np.zeros((10, 2, 2, 1), np.uint8)
    pixels[3] = 1
    assert natural_copies([[0, 2], [0, 3], [5, 6], [4]], faults, pixels) == [True, False, False, False]
    scores = np.arange(10.0)
    assert ordered_pairs(scores, faults) == {"class": 1 / 6, "foreign": 1.0}


def test_the_draw_of_the_tuning_reaches_no_goal(capsys):
    def row(draw: int, count: int) -> dict:
        hits = {"class": count, "duplicate": 17, "foreign": 16}
        pairs = {"class": 0.5, "foreign": 0.5}
        return {
            "set": "digits", "draw": draw, "found": {"sela_tf": hits}, "found_among_others": {"sela_tf": hits}, "natural_copies": {"sela_tf": 0},
            "look_here_first": pairs,
        }  # fmt: skip

    assert goals([row(0, 17), row(1, 6)]) == 1
    assert goals([row(0, 0), row(1, 7)]) == 0
    assert capsys.readouterr().out.splitlines()[0].startswith("MISSED: digits: 78%")
    assert "| 100% 78%" in table([row(0, 17), row(1, 6)])
    assert "| digits | 50%" in pairs_table([row(0, 17), row(1, 6)])
