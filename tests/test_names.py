"""Names of clusters and of images: names.csv, labels.npz, and the commands that use them."""

from __future__ import annotations

import csv
import os
import pathlib
import re
import runpy
import shutil
import unicodedata

import keras
import numpy as np
import pyarrow.parquet
import pytest
import serving_double
import tensorflow as tf
from fixtures import ROOT, SMALL, run_doors
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from served import ask, is_blank

from sela_tf.commands.export import export_run
from sela_tf.commands.label import label_run
from sela_tf.commands.report import report_run
from sela_tf.data.errors import SourceError
from sela_tf.data.sources import load_source
from sela_tf.files.archives import read_npz
from sela_tf.files.storage import StorageError
from sela_tf.models.layer_names import EMBEDDING
from sela_tf.runs import labels as runs_labels
from sela_tf.runs.cluster_names import Names, kept_names, named, read_names, write_names
from sela_tf.runs.labels import read_labels
from sela_tf.runs.lock import lock_run
from sela_tf.runs.names import LABELS
from sela_tf.serving.check import MismatchError, _check_names
from sela_tf.serving.saved_model import ServedVectors, read_signatures
from sela_tf.settings.commands import ExportConfig, LabelConfig, ReportConfig
from sela_tf.settings.fields import ConfigError

OLD_RUN = pathlib.Path(__file__).parent / "data" / "run_of_cf4b11e"
HEADER = "head,cluster,source,name\n"


def names_of(path: pathlib.Path, text: str, encoding: str = "utf-8", **more: int) -> Names:
    path.write_bytes(text.encode(encoding))
    return read_names(path, **{"num_heads": 2, "num_clusters": 8, **more}, setting="names")


class TestFile:
    """names.csv."""

    def test_rows_of_clusters_and_of_images(self, tmp_path):
        text = '0,3,,"cats, ""big"" ones"\r\n1,0,, cats \r\n0,4,,\r\n\r\n,,d/a.png,dogs\r\n,,b.png,\r\n0,5,,cats\r\n'
        found = names_of(tmp_path / "names.csv", HEADER.strip() + "\r\n" + text)
        assert found.clusters == {(0, 3): 'cats, "big" ones', (1, 0): "cats", (0, 5): "cats"}
        assert found.images == {"d/a.png": "dogs", "b.png": ""}
        table = found.of_clusters(2, 8)
        assert table.shape == (2, 8)
        assert [table[0, 3], table[1, 0], table[0, 5], table[0, 4]] == ['cats, "big" ones', "cats", "cats", ""]

    @pytest.mark.parametrize("delimiter", [",", ";", "\t"])
    @pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
    def test_as_table_software_writes_it(self, tmp_path, delimiter, encoding):
        text = f"{HEADER}0.0,3.0,,cafe\u0301\n,,7.0,a\n".replace(",", delimiter)
        found = names_of(tmp_path / "names.csv", text, encoding)
        assert found == Names({(0, 3): "caf\u00e9"}, {"7.0": "a"})

    def test_the_same_is_said_twice(self, tmp_path):
        found = names_of(tmp_path / "names.csv", f"{HEADER}0,1,,a\n0,1,,\n0,1,,a \n,,x,\n,,x,b\n,,x,\n")
        assert found == Names({(0, 1): "a"}, {"x": "b"})

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("", "the first line of `names=.*names.csv` must be head,cluster,source,name. Received: ''"),
            ("name,cluster\n", "Received: 'name,cluster'"),
            (f"{HEADER}0,1,x,a\n", "line 2.*must have head and cluster, or source. Received: '0,1,x,a'"),
            (f"{HEADER}\n,,,a\n", "line 3.*or source. Received: ',,,a'"),
            (f"{HEADER}0,,,a\n", "line 2.*or source"),
            (f"{HEADER},1,x,a\n", "line 2.*or source"),
            (f"{HEADER}0,1,,a,b\n", "line 2.*4 columns"),
            (f"{HEADER}2,1,,a\n", "line 2.*the head must be from 0 to 1. Received: '2'"),
            (f"{HEADER}0,8,,a\n", "line 2.*the cluster must be from 0 to 7. Received: '8'"),
            (f"{HEADER}0,-1,,a\n", "from 0 to 7"),
            (f"{HEADER}0,1.5,,a\n", "from 0 to 7"),
            (f'{HEADER},,"x\ny",a\n0,1,,a\n0,1,,b\n', "line 5.*calls cluster 1 of head 0 'b', and line 4 calls it 'a'"),
            (f"{HEADER},,x,a\n,,x,\n,,x,b\n", "line 4.*calls 'x' 'b', and line 2 calls it 'a'"),
            (f'{HEADER}0,1,,"a\nb"\n', "line 2.*a name is one line"),
            (f'{HEADER}0,1,,"a\n0,2,,b\n', "line 2.*a name is one line"),
            (f"{HEADER}0,1,,a\0\n", "line 2.*without control characters"),
        ],
    )
    def test_a_wrong_line_is_named(self, tmp_path, text, message):
        with pytest.raises(SourceError, match=message):
            names_of(tmp_path / "names.csv", text)

    def test_a_file_that_cannot_be_read(self, tmp_path):
        with pytest.raises(SourceError, match=r"`names=.*none.csv` cannot be read"):
            read_names(tmp_path / "none.csv", num_heads=1, num_clusters=2, setting="names")
        with pytest.raises(SourceError, match="cannot be read: .*utf-8.*: save it as CSV UTF-8"):
            names_of(tmp_path / "names.csv", HEADER + "0,1,,\xe9\n", "latin-1")

    @given(
        st.dictionaries(st.tuples(st.integers(0, 1), st.integers(0, 7)), st.text(max_size=8)),
        st.dictionaries(
            st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r"), min_size=1, max_size=8), st.text(max_size=8)
        ),
    )
    @settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_any_names_come_back(self, tmp_path, clusters, images):
        """Names are compared with what Python's csv writes; those with control characters are refused."""
        path = tmp_path / "names.csv"
        images = {source: name for source, name in images.items() if source.strip()}
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["head", "cluster", "source", "name"])
            writer.writerows([head, cluster, "", name] for (head, cluster), name in clusters.items())
            writer.writerows(["", "", source, name] for source, name in images.items())
        said = [name.strip() for name in (*clusters.values(), *images.values())]
        if any(len(name.splitlines()) > 1 or any(unicodedata.category(each) == "Cc" for each in name) for name in said):
            with pytest.raises(SourceError, match="a name is one line"):
                read_names(path, num_heads=2, num_clusters=8, setting="names")
            return
        found = read_names(path, num_heads=2, num_clusters=8, setting="names")
        normal = {key: unicodedata.normalize("NFC", name.strip()) for key, name in clusters.items()}
        assert found.clusters == {key: name for key, name in normal.items() if name}
        assert found.images == {source: unicodedata.normalize("NFC", name.strip()) for source, name in images.items()}
        # NumPy keeps them as they are.
        for (head, cluster), name in found.clusters.items():
            assert found.of_clusters(2, 8)[head, cluster] == name


@pytest.fixture
def old_run(tmp_path) -> pathlib.Path:
    """A copy of a run of an older version, of two heads of eight clusters."""
    return pathlib.Path(shutil.copytree(OLD_RUN, tmp_path / "run"))


class TestLabelsFile:
    """The array `cluster_names` of labels.npz."""

    def test_no_other_array_changes(self, old_run):
        before = read_npz(old_run / LABELS)
        write_names(old_run, Names({(0, 3): "cats", (1, 7): "\N{CAT FACE}"}, {"a.png": "dogs"}))
        after = read_labels(old_run, (2, 8))
        assert set(after) == {*before, "cluster_names"}
        for name, values in before.items():
            assert (after[name].dtype, after[name].tobytes()) == (values.dtype, values.tobytes())
        assert named(after, 2, 8).tolist() == [["", "", "", "cats", "", "", "", ""], [*[""] * 7, "\N{CAT FACE}"]]
        assert kept_names(old_run)["cluster_names"].tolist() == named(after, 2, 8).tolist()
        # Others replace them.
        write_names(old_run, Names({}, {}))
        assert (named(read_labels(old_run, (2, 8)), 2, 8) == "").all()

    def test_older_runs_have_none(self, old_run):
        assert named(read_labels(old_run, (2, 8)), 2, 8).tolist() == [[""] * 8] * 2
        assert kept_names(old_run) == kept_names(old_run / "none") == {}

    def test_whole_or_not_at_all(self, old_run, monkeypatch):
        before = (old_run / LABELS).read_bytes()

        def cut(file, **arrays):
            pathlib.Path(file).write_bytes(b"PK")
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(runs_labels.np, "savez", cut)
        with pytest.raises(
            StorageError, match=r"cannot be written \(No space left on device\): what was there before is as it was"
        ):
            write_names(old_run, Names({(0, 3): "cats"}, {}))
        assert (old_run / LABELS).read_bytes() == before
        assert not list(old_run.glob(".unfinished*"))

    def test_a_run_that_is_written_is_refused(self, old_run):
        descriptor = lock_run(old_run)
        with pytest.raises(ConfigError, match="is in use by process"):
            write_names(old_run, Names({(0, 3): "cats"}, {}))
        os.close(descriptor)
        write_names(old_run, Names({(0, 3): "cats"}, {}))
        os.close(lock_run(old_run))

    @pytest.mark.parametrize("wrong", [np.array([["a", "b"]]), np.zeros((2, 8))])
    def test_names_of_other_clusters_are_refused(self, old_run, wrong):
        arrays = read_npz(old_run / LABELS)
        np.savez(old_run / LABELS, **{**arrays, "cluster_names": wrong})
        with pytest.raises(ConfigError, match=r"cluster_names .* that are not text \[2, 8\]"):
            read_labels(old_run, (2, 8))


N, K, T = 120, 6, 2


def embedded(outputs: int) -> keras.Model:
    """A network from vectors [B, outputs * K] that are its logits [B, outputs, K] themselves."""
    inputs = keras.Input((outputs * K,))
    embedding = keras.layers.Activation("linear", name=EMBEDDING)(inputs)
    return keras.Model(inputs, keras.layers.Reshape((outputs, K))(embedding))


TABLE = np.array([["caf\u00e9", "", "\N{CAT FACE}", "dogs, big", "", "x"], ["", "a", "b", "", "a", ""]])


class TestServed:
    """The output `name` of a served model."""

    def test_it_is_the_name_of_the_cluster(self, rng):
        served = ServedVectors(embedded(T), names=TABLE).signatures()["serving_default"]
        vectors = rng.normal(size=(40, T * K)).astype(np.float32)
        vectors[3] = np.nan
        answers = {name: value.numpy() for name, value in served(vectors).items()}
        clusters = vectors.reshape(40, T, K).argmax(axis=2)
        expected = [["" if row == 3 else TABLE[head, clusters[row, head]] for head in range(T)] for row in range(40)]
        assert [[name.decode() for name in names] for names in answers["name"]] == expected
        assert answers["name"][3].tolist() == [b"", b""]
        assert served(vectors[:0])["name"].shape == (0, T)

    def test_without_names_it_is_not_there(self, rng):
        vectors = rng.normal(size=(4, T * K)).astype(np.float32)
        plain, called = (
            ServedVectors(embedded(T), names=names).signatures()["serving_default"](vectors) for names in (None, TABLE)
        )
        assert set(called) == {*plain, "name"}
        for name, value in plain.items():
            assert value.numpy().tobytes() == called[name].numpy().tobytes()

    def test_the_check_knows_it(self):
        clusters = np.array([[0, 1], [2, -1]])
        right = np.char.encode([["caf\u00e9", "a"], ["\N{CAT FACE}", ""]], "utf-8")
        _check_names({"images/8/cluster": clusters, "images/8/name": right}, TABLE)
        _check_names({"images/8/cluster": clusters}, None)
        for answers, names in (
            ({"images/8/name": right}, None),
            ({}, TABLE),
            ({"images/8/name": right[::-1]}, TABLE),
            ({"images/8/name": np.where(right == b"", b"a", right)}, TABLE),
        ):
            with pytest.raises(MismatchError, match="images/8: clusters are not called by their names"):
                _check_names({"images/8/cluster": clusters, **answers}, names)


@pytest.mark.slow
class TestCommands:
    """label, export and train with names, on a run of an older version."""

    @pytest.fixture
    def named_run(self, old_run) -> pathlib.Path:
        """A run with names of its own."""
        write_names(old_run, Names({(0, 3): "caf\u00e9", (0, 5): "caf\u00e9", (1, 1): "b"}, {}))
        return old_run

    def test_all_answer_with_the_same_names(self, named_run, tmp_path):
        table = named(read_labels(named_run, (2, 8)), 2, 8)
        export_run(ExportConfig(workdir=str(named_run), export_dir=str(tmp_path / "served"), check=True, warm_up=True))
        for suffix in ("parquet", "csv", "npz"):
            label_run(LabelConfig(workdir=str(named_run), output=str(tmp_path / f"labels.{suffix}"), embeddings=False))
        found = pyarrow.parquet.read_table(tmp_path / "labels.parquet").to_pydict()
        with np.load(tmp_path / "labels.npz") as archive, (tmp_path / "labels.csv").open(encoding="utf-8", newline="") as file:
            arrays, rows = dict(archive), list(csv.DictReader(file))
        digits = load_source("digits").train.images
        served = tf.saved_model.load(str(tmp_path / "served" / "1"))
        answers = ask(served, "images", digits)
        for head in range(2):
            names = [table[head, cluster] for cluster in found[f"cluster_{head}"]]
            assert len(set(names)) > 1
            assert found[f"cluster_name_{head}"] == arrays[f"cluster_name_{head}"].tolist() == names
            assert [row[f"cluster_name_{head}"] for row in rows] == names
            same = answers["cluster"][found["index"], head] == found[f"cluster_{head}"]
            assert same.mean() > 0.99
            served_names = [name.decode() for name in answers["name"][found["index"], head]]
            assert [name for name, is_same in zip(served_names, same, strict=True) if is_same] == np.array(names)[same].tolist()
        assert is_blank(ask(served, "serving_default", [b"no image"]), 0)
        assert ask(served, "serving_default", [b"no image"])["name"].tolist() == [[b"", b""]]
        signatures = read_signatures(tmp_path / "served" / "1")
        assert all(each.outputs["name"] == tf.TensorSpec([None, 2], tf.string) for each in signatures.values())

    def test_a_file_of_names_wins_and_is_not_stored(self, named_run, tmp_path):
        before = (named_run / LABELS).read_bytes()
        (tmp_path / "names.csv").write_text(f"{HEADER}0,3,,dogs\n,,5,cats\n,,6,\n,,99999,of another set\n")
        options = {"output": str(tmp_path / "labels.npz"), "names": str(tmp_path / "names.csv"), "embeddings": False}
        label_run(LabelConfig(workdir=str(named_run), **options))
        with np.load(tmp_path / "labels.npz") as archive:
            arrays = dict(archive)
        expected = np.where(arrays["cluster_0"] == 3, "dogs", "").astype(object)
        expected[arrays["index"] == 5], expected[arrays["index"] == 6] = "cats", ""
        assert arrays["cluster_name_0"].tolist() == expected.tolist()
        assert (named_run / LABELS).read_bytes() == before

    def test_rows_of_another_source_name_nothing(self, named_run, tmp_path, capsys):
        (tmp_path / "names.csv").write_text(f"{HEADER}0,3,,dogs\n,,5,cats\n,,6,cats\n")
        np.savez(tmp_path / "other.npz", images=load_source("digits").train.images[100:120, ..., 0])
        options = {"names": str(tmp_path / "names.csv"), "embeddings": False, "output": str(tmp_path / "labels.npz")}
        for dataset, named_ones in ((f"npz:{tmp_path / 'other.npz'}", 0), ("digits", 2)):
            capsys.readouterr()
            label_run(LabelConfig(workdir=str(named_run), dataset=dataset, **options))
            with np.load(tmp_path / "labels.npz") as archive:
                assert (archive["cluster_name_0"] == "cats").sum() == named_ones
            told = "names: 2 of 2 images that were named one by one are not among those to label"
            assert (told in capsys.readouterr().out) == (named_ones == 0)

    def test_without_names_there_is_no_column(self, old_run, tmp_path):
        label_run(LabelConfig(workdir=str(old_run), output=str(tmp_path / "labels.npz"), embeddings=False))
        with np.load(tmp_path / "labels.npz") as archive:
            assert not any("cluster_name" in name for name in archive)

    def test_clients_say_them(self, named_run, tmp_path, monkeypatch, capsys):
        options = {"warm_up": False, "potentials": False}
        (tmp_path / "names.csv").write_text(HEADER + "".join(f"{head},{k},,caf\u00e9 {k}\n" for head in range(2) for k in range(8)))
        served = str(tmp_path / "served")
        export_run(ExportConfig(workdir=str(named_run), export_dir=served, names=str(tmp_path / "names.csv"), **options))
        (tmp_path / "a.png").write_bytes(tf.io.encode_png(load_source("digits").train.images[0]).numpy())
        with serving_double.served(tmp_path / "served", "sela") as ports:
            for name, where in (
                ("serving_rest_client", f"--url=http://127.0.0.1:{ports.rest}"),
                ("serving_grpc_client", f"--server=127.0.0.1:{ports.grpc}"),
            ):
                monkeypatch.setattr("sys.argv", [name, where, str(tmp_path / "a.png")])
                assert runpy.run_path(str(ROOT / "examples" / f"{name}.py"))["main"]() == 0
                lines = capsys.readouterr().out.splitlines()
                assert len(lines) == 2
                assert all(re.search(r"cluster (\d), .*, name caf\u00e9 \1$", line) for line in lines)


@pytest.mark.slow
def test_a_report_refuses_names_of_images_of_another_run(finished, tmp_path):
    workdir = shutil.copytree(finished[0], tmp_path / "run")
    before = (workdir / LABELS).read_bytes()
    (tmp_path / "names.csv").write_text(f"{HEADER}0,3,,a\n,,17,a\n,,cat.png,a\n")
    with pytest.raises(SourceError, match="no image of the run has the row 'cat.png'"):
        report_run(ReportConfig(workdir=str(workdir), names=str(tmp_path / "names.csv")))
    assert (workdir / LABELS).read_bytes() == before


@pytest.mark.slow
def test_a_run_holds_what_was_named_and_keeps_its_names(finished, tmp_path):
    """Names of a finished run survive more epochs; a new run holds the images that were named."""
    workdir, second = shutil.copytree(finished[0], tmp_path / "run"), tmp_path / "second"
    before = read_npz(workdir / LABELS)
    rows = before["source_rows"][[3, 8, 20]]
    (tmp_path / "names.csv").write_text(f"{HEADER}0,3,,a\n0,4,,a\n1,5,,a\n0,7,,b\n,,{rows[0]},a\n,,{rows[1]},b\n,,{rows[2]},\n")
    write_names(workdir, read_names(tmp_path / "names.csv", num_heads=2, num_clusters=16, setting="names"))
    longer, held = run_doors(
        [
            [*SMALL, f"--workdir={workdir}", "--epochs=3"],
            [*SMALL, f"--workdir={second}", "--epochs=1", f"--known_labels={tmp_path / 'names.csv'}"],
        ]
    )
    assert longer.returncode == held.returncode == 0, longer.stderr + held.stderr
    after = read_labels(workdir, (2, 16))
    assert after["step"] > before["step"]
    assert named(after, 2, 16)[0, [3, 4, 7]].tolist() == ["a", "a", "b"]
    found = read_labels(second, (2, 16))
    for labels in (found["labels"], found["training_labels"]):
        assert labels[0, 3] in (3, 4)
        assert (labels[1, 3], labels[0, 8]) == (5, 7)
    assert found["labels"][0, 3] == found["training_labels"][0, 3]
