"""Asks a served model about image files, by gRPC; needs tensorflow-serving-api.

python examples/serving_grpc_client.py --server=localhost:8500 --model=sela IMAGE [IMAGE …]
"""

from __future__ import annotations

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # the messages are TensorFlow's, which says much on loading

import grpc
import tensorflow as tf
from tensorflow_serving.apis import model_pb2, predict_pb2, prediction_service_pb2_grpc


def ask(server: str, model: str, files: list[bytes], timeout: float) -> dict:
    """The server's answers, as arrays [B, …]."""
    request = predict_pb2.PredictRequest(
        model_spec=model_pb2.ModelSpec(name=model, signature_name="serving_default"),
        inputs={"image_bytes": tf.make_tensor_proto(files)},
    )
    with grpc.insecure_channel(server) as channel:
        response = prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request, timeout=timeout)
    return {name: tf.make_ndarray(tensor) for name, tensor in response.outputs.items()}


def main() -> int:
    """Prints a line for each image and head; 1 if an image is none, 2 if there is no answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", type=pathlib.Path, help="jpeg, png, gif, bmp or webp files")
    parser.add_argument("--server", default="localhost:8500", help="host:port of the server's gRPC interface")
    parser.add_argument("--model", default="sela", help="the name that the server knows it by")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds")
    args = parser.parse_args()
    try:
        answers = ask(args.server, args.model, [path.read_bytes() for path in args.images], args.timeout)
    except grpc.RpcError as error:
        print(f"no answer from {args.server}: {error.code().name} {' '.join(str(error.details()).split())}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 2
    for i, path in enumerate(args.images):
        if not answers["valid"][i]:
            print(f"{path}: no image that is read")
            continue
        for head, values in enumerate(zip(*(answers[name][i] for name in ("cluster", "probability", "margin")), strict=True)):
            # Only models whose clusters have names say them.
            name = answers["name"][i, head].decode() if "name" in answers else ""
            called = f", name {name}" if name else ""
            print(f"{path}: head {head}, cluster {values[0]}, probability {values[1]:.3f}, margin {values[2]:.3f}{called}")
    return 0 if answers["valid"].all() else 1


if __name__ == "__main__":
    sys.exit(main())
