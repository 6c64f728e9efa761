"""The export of a run: its door, its check, and clients of what is served."""

from __future__ import annotations

import importlib.util
import pathlib
import shutil
import signal
import subprocess
import sys

import keras
import numpy as np
import pytest
import serving_double
import tensorflow as tf
from fixtures import ROOT, is_one_line, run_doors
from served import ask

import sela_tf
from sela_tf import export
from sela_tf.commands import export as exporter
from sela_tf.data.pixel_rules import DEFAULT_RULES
from sela_tf.data.sources import load_source
from sela_tf.serving import stand_alone
from sela_tf.serving.saved_model import read_signatures
from sela_tf.serving.warm_up import WARM_UP_FILE
from sela_tf.settings.commands import ExportConfig
from sela_tf.settings.fields import ConfigError
from sela_tf.training.images import load_data

# its fixtures are made once: in one process of several
pytestmark = pytest.mark.xdist_group("export")


@pytest.fixture(scope="module")
def exports(finished, tmp_path_factory):
    """(directory with the versions 1, with potentials and checked, and 7, without; what the door said)."""
    root = tmp_path_factory.mktemp("exports")
    unfinished, damaged = root / "unfinished", root / "damaged"
    for copy in (unfinished, damaged):
        shutil.copytree(finished[0], copy)
    for name in ("network.json", "results.json"):
        (unfinished / name).unlink()
    (damaged / "labels.npz").write_bytes((finished[0] / "labels.npz").read_bytes()[:-200])
    (root / "file").write_text("hello")
    run, served = f"--workdir={finished[0]}", f"--export_dir={root}/served"
    commands = {
        "checked": [run, served, "--check"],
        "plain": [run, served, "--nopotentials", "--nowarm_up", "--export_version=7"],
        "again": [run, served, "--export_version=7"],
        "nothing": [f"--workdir={root}", served],
        "unfinished": [f"--workdir={unfinished}", served],
        "damaged": [f"--workdir={damaged}", served],
        "file": [run, f"--export_dir={root}/file"],
        "below a file": [run, f"--export_dir={root}/file/below"],
        "no run": [served],
        "no directory": [run],
        "negative": [run, served, "--export_version=-1"],
    }
    said = dict(zip(commands, run_doors(list(commands.values()), "sela_tf.export"), strict=True))
    return root / "served", said


@pytest.fixture(scope="module")
def network(finished) -> keras.Model:
    return sela_tf.load_run(finished[0])


@pytest.fixture(scope="module")
def loaded(exports) -> dict[int, tf.Module]:
    """The loaded SavedModels by version."""
    return {version: tf.saved_model.load(str(exports[0] / str(version))) for version in (1, 7)}


@pytest.fixture(scope="module")
def digits() -> np.ndarray:
    return load_source("digits").train.images


def test_the_door_says_what_was_written(exports):
    served, said = exports
    assert said["checked"].returncode == 0, said["checked"].stderr
    assert said["plain"].returncode == 0, said["plain"].stderr
    assert sorted(path.name for path in served.iterdir()) == ["1", "7"]
    words = " ".join(said["checked"].stdout.split())
    for line in (
        f"Written: {served}/1, ",
        "| serving_default | image_bytes string [B] ",
        "| images | images float32 [B, any, any, any] |",
        "each gives cluster int64 [B, 2], embedding float32 [B, 32], margin float32 [B, 2], probability float32 [B, 2], valid bool [B]",
        "64 of digits give the network's answers",
        "| examples | 64 |",
        f"docker run --rm -p 8500:8500 -p 8501:8501 -v {served}:/models/sela:ro -e MODEL_NAME=sela tensorflow/serving",
    ):
        assert line in words, words
    assert (served / "1" / WARM_UP_FILE).exists()
    assert not (served / "7" / WARM_UP_FILE).exists()
    assert "images/s" not in said["plain"].stdout


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("again", "--export_version=7 is in --export_dir="),
        ("nothing", "holds no run"),
        ("unfinished", "is not finished: repeat its command"),
        ("damaged", "labels.npz is missing or damaged"),
        ("damaged", "--nopotentials"),
        ("file", "file is a file: name a directory"),
        ("below a file", "cannot be written"),
        ("no run", "--workdir is missing"),
        ("no directory", "--export_dir is missing"),
        ("negative", "--export_version must be at least 0"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(exports, command, message):
    is_one_line(exports[1][command], message, door="sela_tf.export")


def test_signatures_are_named_as_clients_need_them(exports):
    signatures = read_signatures(exports[0] / "1")
    assert {name: each.inputs for name, each in signatures.items()} == {
        "serving_default": {"image_bytes": tf.TensorSpec([None], tf.string)},
        "examples": {"examples": tf.TensorSpec([None], tf.string)},
        "images": {"images": tf.TensorSpec([None, None, None, None], tf.float32)},
    }
    for signature in signatures.values():
        assert signature.outputs == {
            "embedding": tf.TensorSpec([None, 32], tf.float32),
            "cluster": tf.TensorSpec([None, 2], tf.int64),
            "probability": tf.TensorSpec([None, 2], tf.float32),
            "margin": tf.TensorSpec([None, 2], tf.float32),
            "valid": tf.TensorSpec([None], tf.bool),
        }


def test_nothing_of_this_machine_or_library_is_in_it(exports):
    for file in (exports[0] / "1").rglob("*"):
        if file.is_file():
            data = file.read_bytes()
            assert b"sela_tf" not in data, file
            assert str(ROOT).encode() not in data, file


@pytest.mark.parametrize("version", [1, 7])
@pytest.mark.parametrize("signature", ["serving_default", "images"])
def test_answers_are_the_networks(loaded, finished, network, digits, version, signature):
    """The cluster with potentials is the argmax of lam log p + potentials; by hand, in double precision."""
    answers = ask(
        loaded[version], signature, digits if signature == "images" else [tf.io.encode_png(image).numpy() for image in digits]
    )
    logits = np.asarray(network(digits.astype(np.float32), training=False), np.float64)
    log_p = logits - logits.max(axis=2, keepdims=True)
    log_p -= np.log(np.exp(log_p).sum(axis=2, keepdims=True))
    with np.load(finished[0] / "labels.npz") as archive:
        lam, potentials = float(archive["lam"]), archive["potentials"].astype(np.float64)
    if version == 7:
        potentials[:] = 0
    scores = lam * log_p + potentials
    p = np.exp(log_p + potentials / lam)
    p = np.sort(p / p.sum(axis=2, keepdims=True), axis=2)
    clear = p[..., -1] - p[..., -2] > 1e-5
    assert clear.mean() > 0.99
    np.testing.assert_array_equal(answers["cluster"][clear], scores.argmax(axis=2)[clear])
    np.testing.assert_allclose(answers["probability"], p[..., -1], atol=1e-5)
    np.testing.assert_allclose(answers["margin"], p[..., -1] - p[..., -2], atol=1e-5)
    embedding = keras.Model(network.input, network.get_layer("embedding").output)(digits.astype(np.float32), training=False)
    np.testing.assert_allclose(answers["embedding"], embedding, rtol=1e-4, atol=1e-4)
    assert answers["valid"].all()
    if version == 1:  # or this test could not tell the two apart
        assert (answers["cluster"] != log_p.argmax(axis=2)).mean() > 0.01


def test_potentials_bring_sizes_near_equal(loaded, digits):
    """Corrected for the prior: much nearer to equal sizes than the plain argmax, on the images that were trained on."""
    spread = {}
    for version in (1, 7):
        clusters = ask(loaded[version], "images", digits)["cluster"]
        spread[version] = np.mean([np.bincount(head, minlength=16).std() for head in clusters.T])
    assert spread[1] < 0.5 * spread[7]


def test_warm_up_requests_run(exports, loaded):
    from tensorflow_serving.apis import prediction_log_pb2

    sizes = []
    for record in tf.data.TFRecordDataset(str(exports[0] / "1" / WARM_UP_FILE)):
        request = prediction_log_pb2.PredictionLog.FromString(record.numpy()).predict_log.request
        inputs = {name: tf.constant(tf.make_ndarray(tensor)) for name, tensor in request.inputs.items()}
        answers = loaded[1].signatures[request.model_spec.signature_name](**inputs)
        assert answers["valid"].numpy().all()
        sizes.append((request.model_spec.signature_name, len(answers["valid"])))
    assert sizes == [(name, size) for name in ("serving_default", "images", "examples") for size in (1, 8)]


class TestCheck:
    @pytest.mark.slow
    def test_it_finds_what_differs(self, exports, network, finished, tmp_path, capsys, monkeypatch):
        """A weight that was changed on the way: an error, and no version."""
        original = exporter.check_saved_model

        def tampered(saved_model, *args, **options):
            add_to_a_variable(saved_model)
            return original(saved_model, *args, seconds=0, **options)

        monkeypatch.setattr(exporter, "check_saved_model", tampered)
        before = signal.getsignal(signal.SIGTERM)
        try:
            code = export.main(["export", f"--workdir={finished[0]}", f"--export_dir={tmp_path}", "--check", "--nowarm_up"])
        finally:
            signal.signal(signal.SIGTERM, before)
        assert code == 4
        assert list(tmp_path.iterdir()) == []
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("sela_tf.export: error: serving_default, batch 1: ")
        assert "differs from the network's by " in line

    def test_the_process_knows_neither_this_library_nor_keras(self):
        """Python runs the script's first lines, then asks for what is to be blocked."""
        head, _ = pathlib.Path(stand_alone.__file__).read_text().split("import numpy as np", 1)
        for name in ("sela_tf", "keras"):
            done = subprocess.run(
                [sys.executable, "-I", "-c", f"{head}\nimport {name}"], capture_output=True, text=True, check=False
            )
            assert f"import of {name} halted" in done.stderr

    def test_images_that_are_gone_are_replaced_and_it_is_said(self, finished, network, tmp_path, capsys):
        shutil.copytree(finished[0], tmp_path / "run")
        flagfile = tmp_path / "run" / "flags.cfg"
        flagfile.write_text(flagfile.read_text().replace("--dataset=digits", f"--dataset=folder:{tmp_path}/gone"))
        images = exporter._images(ExportConfig(workdir=str(tmp_path / "run"), export_dir=str(tmp_path)), network, DEFAULT_RULES)
        assert images.channels == 1
        assert "checking with synthetic ones" in capsys.readouterr().out

    def test_held_out_images_are_used(self, finished, network):
        from sela_tf.cli import flags

        images = exporter._images(ExportConfig(workdir=str(finished[0]), export_dir="x"), network, DEFAULT_RULES)
        assert images.fingerprint() == load_data(flags.from_flagfile(finished[0] / "flags.cfg")).held_out.fingerprint()


def add_to_a_variable(saved_model: pathlib.Path) -> None:
    """Writes the checkpoint anew with a thousandth more in the embedding's way."""
    prefix = str(saved_model / "variables" / "variables")
    reader = tf.train.load_checkpoint(prefix)
    tensors = {name: reader.get_tensor(name) for name in reader.get_variable_to_shape_map()}
    (name, kernel) = next((name, value) for name, value in sorted(tensors.items()) if np.ndim(value) == 4)
    tensors[name] = kernel * np.float32(1.01)
    tf.raw_ops.SaveV2(
        prefix=prefix, tensor_names=list(tensors), shape_and_slices=[""] * len(tensors), tensors=list(tensors.values())
    )


def test_without_the_extra_it_is_named_before_any_work(finished, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow_serving.apis.prediction_log_pb2", None)
    monkeypatch.setattr(exporter, "load_run", None)
    settings = ExportConfig(workdir=str(finished[0]), export_dir=str(tmp_path / "x"))
    with pytest.raises(ConfigError, match=r"pip install 'sela-tf\[serving\]', or leave them out with `warm_up=False`"):
        exporter.export_run(settings)
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize(
    ("there", "asked", "given"),
    [
        ([], 0, "1"),
        (["1", "3", ".unfinished-9-12", "notes", "latest"], 0, "4"),
        (["3"], 2, "2"),
        (["00012"], 0, "13"),
        (["x"], 0, "1"),
    ],
)
def test_versions_are_counted(tmp_path, there, asked, given):
    for name in there:
        (tmp_path / name).mkdir()
    settings = ExportConfig(workdir="run", export_dir=str(tmp_path), export_version=asked)
    assert exporter._version_directory(tmp_path, settings) == tmp_path / given


# The clients, before a stand-in for the server.


@pytest.fixture(scope="module")
def ports(exports):
    with serving_double.served(exports[0], "digits") as ports:
        yield ports


@pytest.fixture(scope="module")
def files(digits, tmp_path_factory) -> list[str]:
    """Two digits, and a text between them."""
    directory = tmp_path_factory.mktemp("files")
    for name, image in zip("ac", digits, strict=False):
        (directory / f"{name}.png").write_bytes(tf.io.encode_png(image).numpy())
    (directory / "b.png").write_text("hello")
    return [str(directory / f"{name}.png") for name in "abc"]


def client(name: str, args: list[str], monkeypatch, capsys) -> tuple[int, list[str], list[str]]:
    """(status, lines, lines of errors) of an example, in this process: TensorFlow is loaded already."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "examples" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", [name, *args])
    code = module.main()
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err.splitlines()


@pytest.mark.parametrize("name", ["serving_rest_client", "serving_grpc_client"])
def test_clients(loaded, ports, files, digits, name, monkeypatch, capsys):
    where = {
        "serving_rest_client": f"--url=http://127.0.0.1:{ports.rest}",
        "serving_grpc_client": f"--server=127.0.0.1:{ports.grpc}",
    }
    nowhere = {"serving_rest_client": "--url=http://127.0.0.1:1", "serving_grpc_client": "--server=127.0.0.1:1"}
    answers = ask(loaded[7], "images", digits[:2])
    expected = [
        [
            f"{path}: head {head}, cluster {answers['cluster'][row, head]}, probability {answers['probability'][row, head]:.3f}, "
            f"margin {answers['margin'][row, head]:.3f}"
            for head in range(2)
        ]
        for row, path in enumerate((files[0], files[2]))
    ]
    code, lines, errors = client(name, [where[name], "--model=digits", *files], monkeypatch, capsys)
    assert (code, errors) == (1, [])
    assert lines == [*expected[0], f"{files[1]}: no image that is read", *expected[1]]
    assert client(name, [where[name], "--model=digits", files[0]], monkeypatch, capsys)[0] == 0
    for args, message in (
        ([where[name], "--model=other", files[0]], "not found"),
        ([nowhere[name], "--timeout=2", files[0]], "no answer"),
        ([where[name], "--model=digits", "/nowhere/x.png"], "No such file"),
    ):
        code, lines, errors = client(name, args, monkeypatch, capsys)
        assert (code, lines, len(errors)) == (2, [], 1)
        assert message in errors[0]


def test_the_rest_client_needs_nothing_but_python(ports, files):
    command = [sys.executable, "-I", "-S", ROOT / "examples" / "serving_rest_client.py", f"--url=http://127.0.0.1:{ports.rest}"]
    done = subprocess.run([*command, "--model=digits", files[0]], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
