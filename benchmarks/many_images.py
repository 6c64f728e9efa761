"""ImageNet's shape by two workers: `python -m benchmarks.many_images`, 100,000 images of 64 x 64 from records, K = 3000, T = 3.

Fashion-MNIST's 70,000 images and 30,000 of them mirrored, in colour and drawn to 64 x 64, become JPEG files; `components.data_ingestion` makes
records of them, and two processes train on these as on two machines: one epoch, two relabellings and the last, ResNet-8. Printed are the seconds of
each part, the processor seconds and the peak of memory of each worker. Both share the processors of this machine.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import pathlib
import re
import subprocess
import sys
import tempfile
import time

import numpy as np

from benchmarks.scaling import free_ports

ROOT = pathlib.Path(__file__).parent.parent
_SIDE = 64
_FLAGS = [
    "--backbone=resnet8", f"--image_size={_SIDE}", "--num_heads=3", "--batch_size=256", "--epochs=1", "--num_relabellings=2",
    "--evaluate=none", "--noreport", "--monitor_examples=0", "--learning_rate=0.05",
]  # fmt: skip
_PROGRAM = (
    "import resource, sys; from sela_tf.train import main; code = main(sys.argv); used = resource.getrusage(resource.RUSAGE_SELF); "
    "print('used', used.ru_maxrss, used.ru_utime + used.ru_stime, file=sys.stderr, flush=True); sys.exit(code)"
)


def write_images(directory: pathlib.Path, count: int) -> None:
    """JPEG files in a folder for each class."""
    import tensorflow as tf

    from sela_tf.data.sources import load_source

    splits = load_source("idx:/usr/share/datasets/fashion-mnist")
    images = np.concatenate([splits.train.images, splits.eval.images])
    classes = np.concatenate([splits.train.classes, splits.eval.classes])

    def write(index: int) -> None:
        image = images[index % len(images)]
        image = image[:, ::-1] if index >= len(images) else image
        large = tf.cast(tf.image.resize(tf.repeat(image, 3, axis=2), [_SIDE, _SIDE], "bicubic"), tf.uint8)
        place = directory / f"{classes[index % len(images)]}" / f"{index:06d}.jpg"
        place.write_bytes(tf.io.encode_jpeg(large, quality=90).numpy())

    for label in np.unique(classes):
        (directory / str(label)).mkdir(parents=True)
    with concurrent.futures.ThreadPoolExecutor(4) as threads:
        list(threads.map(write, range(count)))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--clusters", type=int, default=3000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--label_memory", type=float, default=1.0, help="GiB of each worker")
    parser.add_argument("--directory", type=pathlib.Path, help="keeps files, records and the run here")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        place = options.directory or pathlib.Path(temporary)
        if not (place / "records").exists():
            write_images(place / "files", options.images)
            start = time.perf_counter()
            ingest = [
                "components.data_ingestion",
                f"--dataset=folder:{place / 'files'}",
                "--eval_fraction=0.01",
                f"--examples={place / 'records'}",
            ]
            subprocess.run([sys.executable, "-m", *ingest], cwd=ROOT, check=True)
            print(f"ingestion of {options.images:,} files: {time.perf_counter() - start:.0f} s", flush=True)
        cluster = {"worker": [f"localhost:{port}" for port in free_ports(options.workers)]}
        flags = [
            *_FLAGS,
            f"--dataset=records:{place / 'records'}",
            f"--num_clusters={options.clusters}",
            f"--workdir={place / 'run'}",
        ]
        processes, start = [], time.perf_counter()
        for index in range(options.workers):
            environment = {**os.environ, "OMP_NUM_THREADS": "1", "TF_CPP_MIN_LOG_LEVEL": "3", "no_proxy": "localhost"}
            if options.workers > 1:
                environment["TF_CONFIG"] = json.dumps({"cluster": cluster, "task": {"type": "worker", "index": index}})
            command = [sys.executable, "-c", _PROGRAM, *flags, f"--label_memory={options.label_memory}"]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True))
        said = [process.communicate()[1] for process in processes]
        if any(process.returncode for process in processes):
            sys.exit("\n".join(said))
        print(f"{time.perf_counter() - start:.0f} s in all")
        for index, text in enumerate(said):
            (found,) = re.findall(r"used (\d+) ([\d.]+)", text)
            print(f"worker {index}: {float(found[1]):.0f} s of cores, {int(found[0]) / 2**20:.2f} GiB resident at the worst moment")
        for line in (place / "run" / "timings.jsonl").read_text().splitlines():
            print(line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
