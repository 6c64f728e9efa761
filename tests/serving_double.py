"""A stand-in for TensorFlow Serving, whose binary is not to be had here: the same messages over gRPC and REST, an exported model behind."""

from __future__ import annotations

import base64
import concurrent.futures
import contextlib
import http.server
import json
import pathlib
import re
import threading
from collections.abc import Iterator
from typing import NamedTuple

import grpc
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import meta_graph_pb2
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc


class Ports(NamedTuple):
    grpc: int
    rest: int


class _Model:
    """The newest version below a directory, in a session as TensorFlow Serving has it; what it calls a bad request is a ValueError."""

    def __init__(self, directory: pathlib.Path, name: str):
        versions = [int(path.name) for path in directory.iterdir() if path.name.isdecimal()]
        self.name = name
        self._session = tf.compat.v1.Session(graph=tf.Graph())
        with self._session.graph.as_default():
            loaded = tf.compat.v1.saved_model.load(self._session, ["serve"], str(directory / str(max(versions))))
        self._signatures = loaded.signature_def

    def predict(self, signature: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if (signature or "serving_default") not in self._signatures:
            raise ValueError(f"no signature {signature!r}")
        tensors = self._signatures[signature or "serving_default"]
        if set(inputs) != set(tensors.inputs):
            raise ValueError(f"inputs must be {sorted(tensors.inputs)}, not {sorted(inputs)}")
        for name, info in tensors.inputs.items():
            spec, given = _spec(info), tf.as_dtype(inputs[name].dtype)
            if given != spec.dtype or not spec.shape.is_compatible_with(inputs[name].shape):
                raise ValueError(f"{name} must be {spec}, not {given} {inputs[name].shape}")
        outputs = {name: info.name for name, info in tensors.outputs.items()}
        return self._session.run(outputs, {info.name: inputs[name] for name, info in tensors.inputs.items()})

    def only_input(self, signature: str) -> tuple[str, tf.TensorSpec]:
        ((name, info),) = self._signatures[signature or "serving_default"].inputs.items()
        return name, _spec(info)

    def close(self) -> None:
        self._session.close()


def _spec(info: meta_graph_pb2.TensorInfo) -> tf.TensorSpec:
    return tf.TensorSpec(tf.TensorShape(info.tensor_shape), tf.as_dtype(info.dtype))


class _Servicer(prediction_service_pb2_grpc.PredictionServiceServicer):
    def __init__(self, model: _Model):
        self._model = model

    def Predict(self, request, context):  # noqa: N802
        if request.model_spec.name != self._model.name:
            context.abort(grpc.StatusCode.NOT_FOUND, f"Servable not found for request: Latest({request.model_spec.name})")
        inputs = {name: tf.make_ndarray(tensor) for name, tensor in request.inputs.items()}
        try:
            outputs = self._model.predict(request.model_spec.signature_name, inputs)
        except (ValueError, tf.errors.InvalidArgumentError) as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        return predict_pb2.PredictResponse(outputs={name: tf.make_tensor_proto(value) for name, value in outputs.items()})


def _decoded(value):
    """Every {"b64": …} as the bytes that it stands for."""
    if isinstance(value, dict) and set(value) == {"b64"}:
        return base64.b64decode(value["b64"], validate=True)
    if isinstance(value, dict):
        return {key: _decoded(each) for key, each in value.items()}
    return [_decoded(each) for each in value] if isinstance(value, list) else value


def _handler(model: _Model) -> type[http.server.BaseHTTPRequestHandler]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            found = re.fullmatch(r"/v1/models/([^/:]+):predict", self.path)
            if not found or found[1] != model.name:
                self._answer(404, {"error": f"Servable not found for request: {self.path}"})
                return
            try:
                self._answer(200, self._predictions(json.loads(body)))
            except (ValueError, KeyError, tf.errors.InvalidArgumentError) as error:
                self._answer(400, {"error": str(error)})

        def _predictions(self, request):
            """The row format, with the value itself where a signature has one input, as the API's documentation has it."""
            signature = request.get("signature_name", "")
            name, spec = model.only_input(signature)
            rows = [row[name] if isinstance(row, dict) else row for row in _decoded(request["instances"])]
            outputs = model.predict(signature, {name: tf.make_ndarray(tf.make_tensor_proto(rows, spec.dtype))})
            outputs = {
                key: np.char.decode(value.astype("S"), "utf-8") if value.dtype == object else value
                for key, value in outputs.items()
            }
            return {"predictions": [{key: value[i].tolist() for key, value in outputs.items()} for i in range(len(rows))]}

        def _answer(self, code, content):
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(content).encode())

        def log_message(self, *args):
            pass

    return Handler


@contextlib.contextmanager
def served(directory: pathlib.Path, name: str) -> Iterator[Ports]:
    """Serves the newest version below `directory` on two free ports of this machine."""
    model = _Model(directory, name)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        rpc = grpc.server(pool)
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(_Servicer(model), rpc)
        port = rpc.add_insecure_port("127.0.0.1:0")
        rpc.start()
        rest = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _handler(model))
        thread = threading.Thread(target=rest.serve_forever)
        thread.start()
        try:
            yield Ports(port, rest.server_address[1])
        finally:
            rest.shutdown()
            thread.join()
            rest.server_close()
            rpc.stop(None).wait()
            model.close()
