"""Asks a served model about image files, by REST; needs nothing but Python.

python examples/serving_rest_client.py --url=http://localhost:8501 --model=sela IMAGE [IMAGE …]
"""

from __future__ import annotations

import argparse
import base64
import json
import pathlib
import sys
import urllib.error
import urllib.request


def ask(url: str, model: str, files: list[bytes], timeout: float) -> list[dict]:
    """The server's answer to each file."""
    body = json.dumps({"instances": [{"b64": base64.b64encode(data).decode()} for data in files]}).encode()
    request = urllib.request.Request(f"{url}/v1/models/{model}:predict", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        return json.load(response)["predictions"]


def main() -> int:
    """Prints a line for each image and head; 1 if an image is none, 2 if there is no answer."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("images", nargs="+", type=pathlib.Path, help="jpeg, png, gif, bmp or webp files")
    parser.add_argument("--url", default="http://localhost:8501", help="of the server's REST interface")
    parser.add_argument("--model", default="sela", help="the name that the server knows it by")
    parser.add_argument("--timeout", type=float, default=30.0, help="seconds")
    args = parser.parse_args()
    try:
        answers = ask(args.url.rstrip("/"), args.model, [path.read_bytes() for path in args.images], args.timeout)
    except urllib.error.HTTPError as error:
        print(f"{args.url} refused: {error.code} {' '.join(error.read().decode(errors='replace').split())}", file=sys.stderr)
        return 2
    except (OSError, ValueError, KeyError) as error:
        print(
            f"no answer: {error}" if isinstance(error, urllib.error.URLError) else f"{type(error).__name__}: {error}",
            file=sys.stderr,
        )
        return 2
    for path, answer in zip(args.images, answers, strict=True):
        if not answer["valid"]:
            print(f"{path}: no image that is read")
            continue
        # Only models whose clusters have names say them.
        names = answer.get("name", [""] * len(answer["cluster"]))
        for head, values in enumerate(zip(answer["cluster"], answer["probability"], answer["margin"], names, strict=True)):
            name = f", name {values[3]}" if values[3] else ""
            print(f"{path}: head {head}, cluster {values[0]}, probability {values[1]:.3f}, margin {values[2]:.3f}{name}")
    return 0 if all(answer["valid"] for answer in answers) else 1


if __name__ == "__main__":
    sys.exit(main())
