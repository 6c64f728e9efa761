"""What is exported: the same answers as the network's, whatever comes in; and the door, the clients, and what goes wrong."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import pathlib
import shutil
import signal
import struct
import subprocess
import sys

import keras
import numpy as np
import pytest
import serving_double
import tensorflow as tf
from conftest import ROOT, is_one_line, run_doors
from PIL import Image

import sela_tf
from sela_tf import export, exporter
from sela_tf.config import ConfigError, ExportConfig
from sela_tf.data import decoding
from sela_tf.data.augment import clean_view
from sela_tf.data.decoding import BadImageError, check_image, decode_image, readable
from sela_tf.data.pipeline import inference_batches
from sela_tf.data.sources import load_source
from sela_tf.data.splits import match_input
from sela_tf.parts import load_data
from sela_tf.serving import stand_alone
from sela_tf.serving.check import MismatchError, check_saved_model
from sela_tf.serving.saved_model import ServedImages, export_saved_model, read_signatures
from sela_tf.serving.warm_up import WARM_UP_FILE

# its fixtures are made once: in one process of several
pytestmark = pytest.mark.xdist_group("export")

PIXEL = 1e-5 * 255


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def picture(rng, mode: str = "RGB", size: tuple[int, int] = (20, 14)) -> Image.Image:
    depth = {"L": (), "LA": (2,), "RGB": (3,), "RGBA": (4,), "CMYK": (3,)}[mode]
    return Image.fromarray(rng.integers(0, 256, (*size, *depth), dtype=np.uint8)).convert(mode)


def png_header(width: int, height: int) -> bytes:
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", width, height, 8, 2, 0, 0, 0) + bytes(50)


@pytest.fixture(scope="module")
def good() -> dict[str, bytes]:
    """Files of every format, of many modes and sizes."""
    rng = np.random.default_rng(1)
    deep = Image.fromarray(rng.integers(0, 2**16, (9, 17), dtype=np.uint16))
    frames = [picture(rng, "L", (11, 7)) for _ in range(3)]
    files = {
        f"{mode}.png": encoded(picture(rng, mode, (9 + i, 30 - 5 * i)), "png") for i, mode in enumerate(("L", "LA", "RGB", "RGBA"))
    }
    files |= {f"{mode}.jpg": encoded(picture(rng, mode, (33, 12 + i)), "jpeg") for i, mode in enumerate(("L", "RGB", "CMYK"))}
    return files | {
        "deep.png": encoded(deep, "png"),
        "palette.png": encoded(picture(rng).convert("P"), "png"),
        "colour.gif": encoded(picture(rng, size=(5, 40)).convert("P"), "gif"),
        "moving.gif": encoded(frames[0], "gif", save_all=True, append_images=frames[1:]),
        "colour.bmp": encoded(picture(rng, size=(6, 6)), "bmp"),
        "dot.png": encoded(picture(rng, size=(1, 1)), "png"),
        "line.jpg": encoded(picture(rng, size=(1, 50)), "jpeg"),
        "large.jpg": encoded(picture(rng, size=(300, 200)), "jpeg"),
    }


@pytest.fixture(scope="module")
def bad() -> dict[str, bytes]:
    rng = np.random.default_rng(2)
    png, jpeg, gif, bmp = (encoded(picture(rng).convert(mode), kind) for kind, mode in
                           (("png", "RGB"), ("jpeg", "RGB"), ("gif", "P"), ("bmp", "RGB")))  # fmt: skip
    flipped = bytearray(png)
    flipped[60] ^= 0xFF
    return {
        "empty": b"",
        "text": b"hello",
        "begins as a bitmap": b"BMW makes cars; this is no bitmap at all",
        "two letters": b"BM",
        "webp": encoded(picture(rng), "webp"),
        "tiff": encoded(picture(rng), "tiff"),
        "bmp with a palette": encoded(picture(rng).convert("P"), "bmp"),
        "flipped bit": bytes(flipped),
        **{f"cut {kind}": data[: len(data) // 2] for kind, data in (("png", png), ("jpeg", jpeg), ("gif", gif), ("bmp", bmp))},
        **{f"signature of {kind}": data[:12] for kind, data in (("png", png), ("jpeg", jpeg), ("gif", gif), ("bmp", bmp))},
        "bomb": png_header(40_000, 40_000),
        "bomb beyond 64 bits": png_header(2**32 - 1, 2**32 - 1),
    }


def pixels_as_embedding(channels: int) -> keras.Model:
    """A network whose embedding is what it is shown, so that what is served can be held to the pipeline pixel by pixel."""
    inputs = keras.Input((10, 16, channels))
    embedding = keras.layers.Flatten(name="embedding")(inputs)
    return keras.Model(inputs, sela_tf.MultiHead(2, 3, name="heads")(embedding))


@pytest.fixture(scope="module", params=[1, 3])
def shown(request, tmp_path_factory):
    """(what is loaded of the export of such a network, its channels)."""
    path = tmp_path_factory.mktemp("shown") / "1"
    export_saved_model(pixels_as_embedding(request.param), path)
    return tf.saved_model.load(str(path)), request.param


def ask(loaded, signature: str, values) -> dict[str, np.ndarray]:
    name = {"serving_default": "image_bytes", "images": "images", "examples": "examples"}[signature]
    values = tf.constant(values, tf.float32 if signature == "images" else tf.string)
    return {key: value.numpy() for key, value in loaded.signatures[signature](**{name: values}).items()}


def example(**features: list[bytes]) -> bytes:
    feature = {
        name.replace("_", "/"): tf.train.Feature(bytes_list=tf.train.BytesList(value=value)) for name, value in features.items()
    }
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def is_blank(answers: dict[str, np.ndarray], row: int) -> bool:
    return (
        not answers["valid"][row]
        and (answers["cluster"][row] == -1).all()
        and not any(answers[name][row].any() for name in ("embedding", "probability", "margin"))
    )


class TestImages:
    @pytest.mark.parametrize("signature", ["serving_default", "examples"])
    def test_good_and_bad_files_in_one_batch(self, shown, good, bad, signature):
        loaded, channels = shown
        files = [data for pair in zip(good.values(), bad.values(), strict=False) for data in pair]
        files += list(bad.values())[len(good) :]
        answers = ask(
            loaded, signature, files if signature == "serving_default" else [example(image_encoded=[data]) for data in files]
        )
        assert answers["embedding"].dtype == answers["margin"].dtype == answers["probability"].dtype == np.float32
        assert answers["cluster"].shape == (len(files), 2)
        for row, data in enumerate(files):
            if data in bad.values():
                assert is_blank(answers, row), data[:30]
            else:
                assert answers["valid"][row], data[:30]
                view = clean_view(decode_image(tf.constant(data), channels), (10, 16))
                np.testing.assert_allclose(answers["embedding"][row], np.ravel(view), atol=PIXEL)

    def test_valid_is_what_training_would_read(self, good, bad, shown):
        files = {**good, **bad}
        valid = ask(shown[0], "serving_default", list(files.values()))["valid"]
        for (name, data), found in zip(files.items(), valid, strict=True):
            if found:
                check_image(data)
            else:
                with pytest.raises(BadImageError):
                    check_image(data)
            assert found == (name in good)

    def test_all_bad_and_none_at_all(self, shown, bad):
        answers = ask(shown[0], "serving_default", list(bad.values())[:2])
        assert is_blank(answers, 0)
        assert is_blank(answers, 1)
        for signature, nothing in (("serving_default", []), ("examples", []), ("images", np.zeros((0, 5, 7, 3)))):
            answers = ask(shown[0], signature, nothing)
            assert answers["embedding"].shape == (0, 160 * shown[1])
            assert answers["cluster"].shape == (0, 2)
            assert answers["valid"].shape == (0,)

    def test_a_bad_example_is_its_own_affair(self, shown, good):
        data = good["RGB.png"]
        whole = example(image_encoded=[data])
        rows = [
            whole,
            b"no example",
            example(image_other=[data]),
            example(image_encoded=[data, data]),
            example(),
            b"",
            whole[:40],
            whole,
        ]
        answers = ask(shown[0], "examples", rows)
        assert answers["valid"].tolist() == [True, False, False, False, False, False, False, True]
        assert all(is_blank(answers, row) for row in range(1, 7))
        np.testing.assert_array_equal(answers["embedding"][0], answers["embedding"][7])

    @pytest.mark.parametrize("depth", [1, 2, 3, 4])
    @pytest.mark.parametrize("size", [(10, 16), (31, 9), (1, 1), (3, 40)])
    def test_pixels_of_any_size_and_depth_are_seen_as_the_file_is(self, shown, rng, depth, size):
        loaded, _ = shown
        images = rng.integers(0, 256, (3, *size, depth), dtype=np.uint8)
        answers = ask(loaded, "images", images)
        files = ask(loaded, "serving_default", [tf.io.encode_png(image).numpy() for image in images])
        for name, values in answers.items():
            np.testing.assert_allclose(values, files[name], atol=PIXEL)
        for name, values in loaded(tf.constant(images, tf.float32)).items():
            np.testing.assert_array_equal(values, answers[name])

    def test_pixels_that_are_no_numbers_and_too_many_channels(self, shown, rng):
        images = rng.random((4, 5, 6, 3)).astype(np.float32) * 255
        whole = ask(shown[0], "images", images)
        images[1, 2, 3, 0], images[2, 0, 0, 2] = np.nan, np.inf
        answers = ask(shown[0], "images", images)
        assert answers["valid"].tolist() == [True, False, False, True]
        assert is_blank(answers, 1)
        assert is_blank(answers, 2)
        np.testing.assert_array_equal(answers["embedding"][[0, 3]], whole["embedding"][[0, 3]])
        with pytest.raises(tf.errors.InvalidArgumentError, match="1 to 4 channels"):
            ask(shown[0], "images", np.zeros((1, 5, 6, 5)))

    def test_a_folder_of_many_sizes_is_seen_as_evaluation_sees_it(self, shown, good, tmp_path):
        loaded, channels = shown
        for name, data in good.items():
            (tmp_path / name).write_bytes(data)
        images = match_input(load_source(f"folder:{tmp_path}").train, (1, 1, channels))
        answers = ask(loaded, "serving_default", [pathlib.Path(path).read_bytes() for path in images.paths])
        for views, indices in inference_batches(images, size=(10, 16), batch_size=4):
            np.testing.assert_allclose(answers["embedding"][indices], np.reshape(views, (len(views), -1)), atol=PIXEL)


def test_sizes_are_read_from_headers_before_anything_is_decoded(rng, monkeypatch):
    """Where the bound is 100 pixels, one of 9 x 11 is decoded, one of 101 is not: of every format, whichever side is the long one."""
    monkeypatch.setattr(decoding, "MAX_PIXELS", 100)
    for kind, mode in (("png", "RGB"), ("jpeg", "RGB"), ("gif", "P"), ("bmp", "RGB")):
        files = [encoded(picture(rng, size=size).convert(mode), kind) for size in ((9, 11), (11, 9), (101, 1), (1, 101), (10, 10))]
        if kind == "bmp":  # rows from the top
            files += [data[:22] + struct.pack("<i", -struct.unpack("<i", data[22:26])[0]) + data[26:] for data in files]
        for data, small in zip(files, [True, True, False, False, True] * 2, strict=False):
            decodes = bool(readable(tf.constant([data]))[0])
            if kind == "jpeg":
                assert decodes
                with contextlib.nullcontext() if small else pytest.raises(tf.errors.InvalidArgumentError):
                    decode_image(tf.constant(data), 3)
            else:
                assert decodes == small
            with contextlib.nullcontext() if small else pytest.raises(BadImageError, match="at most 100"):
                check_image(data)


def test_half_precision_inside_gives_single_precision(rng):
    model = sela_tf.build_model("resnet8", image_shape=(8, 8, 3), num_heads=2, num_clusters=4, width=4, dtype="mixed_bfloat16")
    answers = ServedImages(model)(tf.constant(rng.random((2, 8, 8, 3)), tf.float32))
    assert {name: value.dtype.name for name, value in answers.items()} == {
        "embedding": "float32", "cluster": "int64", "probability": "float32", "margin": "float32", "valid": "bool",
    }  # fmt: skip


class TestWholeOrNotAtAll:
    @pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
    def test_nothing_is_left_when_it_fails_late(self, tmp_path, error):
        def fail(unfinished: pathlib.Path) -> None:
            assert (unfinished / "saved_model.pb").exists()
            assert not (tmp_path / "served" / "1").exists()
            assert not unfinished.name.isdecimal()
            raise error

        with pytest.raises(error):
            export_saved_model(pixels_as_embedding(1), tmp_path / "served" / "1", check=fail)
        assert list((tmp_path / "served").iterdir()) == []

    def test_what_is_there_stays(self, tmp_path):
        (tmp_path / "1").mkdir()
        (tmp_path / "1" / "saved_model.pb").write_text("mine")
        with pytest.raises(FileExistsError):
            export_saved_model(pixels_as_embedding(1), tmp_path / "1")
        assert (tmp_path / "1" / "saved_model.pb").read_text() == "mine"


# The door, and what it exports of a run.


@pytest.fixture(scope="module")
def exports(finished, tmp_path_factory):
    """(directory with the versions 1, with potentials and checked, and 7, without; what the door said)."""
    root = tmp_path_factory.mktemp("exports")
    unfinished, damaged = root / "unfinished", root / "damaged"
    for copy in (unfinished, damaged):
        shutil.copytree(finished[0], copy)
    (unfinished / "results.json").unlink()
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
    """By version."""
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
        "64 of --dataset=digits give the network's answers",
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
    """With potentials the cluster is the argmax of lam log p + potentials; by hand, in double precision."""
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
        assert code == 2
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

    def test_images_of_many_sizes_and_a_model_that_cannot_be_run(self, good, tmp_path):
        (tmp_path / "images").mkdir()
        for name, data in good.items():
            (tmp_path / "images" / name).write_bytes(data)
        images = load_source(f"folder:{tmp_path}/images").train
        model = pixels_as_embedding(3)
        export_saved_model(model, tmp_path / "1", potentials=np.array([[3.0, 0, 0], [0, 0, 1]]), lam=4.0)
        checked = check_saved_model(
            tmp_path / "1", model, images, potentials=np.array([[3.0, 0, 0], [0, 0, 1]]), lam=4.0, seconds=0
        )
        assert checked.num_images == len(good)
        assert checked.differences["embedding"] <= 1e-5
        (tmp_path / "1" / "variables" / "variables.index").unlink()
        with pytest.raises(MismatchError, match=r"cannot be run: .*variables"):
            check_saved_model(tmp_path / "1", model, images, seconds=0)

    def test_images_that_are_gone_are_replaced_and_it_is_said(self, finished, network, tmp_path, capsys):
        shutil.copytree(finished[0], tmp_path / "run")
        flagfile = tmp_path / "run" / "flags.cfg"
        flagfile.write_text(flagfile.read_text().replace("--dataset=digits", f"--dataset=folder:{tmp_path}/gone"))
        images = exporter._images(ExportConfig(workdir=str(tmp_path / "run"), export_dir=str(tmp_path)), network)
        assert images.channels == 1
        assert "checking with synthetic ones" in capsys.readouterr().out

    def test_held_out_images_are_used(self, finished, network):
        from sela_tf import flags

        images = exporter._images(ExportConfig(workdir=str(finished[0]), export_dir="x"), network)
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
    with pytest.raises(ConfigError, match=r"pip install 'sela-tf\[serving\]', or leave them out with --nowarm_up"):
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
    assert exporter._place(settings) == tmp_path / given


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
