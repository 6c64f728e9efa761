"""Keras in a fresh process: models load without being told of the library's classes; other backends are refused."""

from __future__ import annotations

import pytest
from fixtures import run_python
from user_model import K, N, T, compiled, slow

import sela_tf


class TestRegistration:
    @pytest.mark.parametrize(
        "imports",
        [
            "import sela_tf, importlib.util; importlib.util.find_spec('keras'); import keras",
            *map(
                slow,
                [
                    "import keras, sela_tf",
                    "import sela_tf, tensorflow as tf; keras = tf.keras",
                    "import tensorflow as tf, sela_tf; keras = tf.keras",
                    "import sela_tf; from keras import models; import keras",
                    "import sela_tf; sela_tf.MultiHead; import keras",
                ],
            ),
        ],
    )
    def test_a_fresh_process_loads_a_model(self, tmp_path, imports):
        path = str(tmp_path / "model.keras")
        compiled(sela_tf.LabelTable(T, K, N)).save(path)
        done = run_python(
            f"{imports}; import sys; before = len(sys.meta_path); keras.models.load_model({path!r}, compile=False); "
            f"model = keras.models.load_model({path!r}); print(type(model.loss).__name__, model.loss.labels); "
            "assert not any(type(finder).__module__ == 'sela_tf.compat.keras_registration' for finder in sys.meta_path)"
        )
        assert done.returncode == 0, done.stderr
        assert done.stdout == "SelfLabelLoss None\n"


class TestOtherBackends:
    def test_are_refused_by_every_door_before_anything_is_loaded(self):
        code = (
            "import sys\n"
            "for door, own in [('train', ['--dataset=digits']), ('probe', []), ('export', ['--export_dir=/tmp/none']), ('label', ['--output=/tmp/none.csv'])]:\n"
            "    main = __import__(f'sela_tf.{door}', fromlist=['main']).main\n"
            "    print(main([door, '--workdir=/tmp/none', *own]))\n"
            "print(sorted({'tensorflow', 'keras', 'jax'} & set(sys.modules)))"
        )
        done = run_python(code, KERAS_BACKEND="jax")
        assert done.stdout.splitlines() == ["2"] * 4 + ["[]"], done
        lines = done.stderr.splitlines()
        assert [line.split(": ")[0] for line in lines] == [f"sela_tf.{door}" for door in ("train", "probe", "export", "label")]
        assert all(": error: KERAS_BACKEND=jax: " in line and "set KERAS_BACKEND=tensorflow" in line for line in lines)

    @pytest.mark.slow
    def test_are_refused_by_the_names_that_need_keras(self):
        code = (
            "import sela_tf\n"
            "for name in sela_tf.__all__:\n"
            "    try:\n"
            "        getattr(sela_tf, name)\n"
            "    except ImportError as error:\n"
            "        assert 'KERAS_BACKEND=torch' in str(error) and 'set KERAS_BACKEND=tensorflow' in str(error), error\n"
            "    else:\n"
            "        print(name)"
        )
        done = run_python(code, KERAS_BACKEND="torch")
        assert done.returncode == 0, done.stderr
        assert set(done.stdout.split()) == {
            "Assignment", "BalancedKMeans", "BalancedLabels", "ConfigError", "ConvertConfig", "ExportConfig", "LabelConfig", "LabelTable", "LinearLogits",
            "ProbeConfig", "ReportConfig", "SelaConfig", "SinkhornOpResult", "SinkhornResult", "SourceError",
            "__version__", "assign_labels", "balanced_labels", "relabel_steps", "sinkhorn", "sinkhorn_op",
        }  # fmt: skip

    def test_that_a_configuration_file_names(self, tmp_path):
        """Keras itself loads; a stand-in here, as its other backends need packages that are not installed."""
        (tmp_path / "keras.py").write_text("import types\nconfig = types.SimpleNamespace(backend=lambda: 'jax')\n")
        done = run_python(
            f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sela_tf, keras; print('loaded'); sela_tf.MultiHead"
        )
        assert done.stdout == "loaded\n"
        assert "ImportError: sela_tf.MultiHead: Keras runs on jax" in done.stderr
        assert "set KERAS_BACKEND=tensorflow" in done.stderr
