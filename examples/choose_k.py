"""How many clusters? A sweep on cached features: do two seeds find the same clusters, how sure is the network, what does it take?

python examples/choose_k.py FEATURES.npy 8 16 32
"""

import argparse
import math
import tempfile
import time

import numpy as np
from sklearn.metrics import adjusted_mutual_info_score

import sela_tf

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("features", help="npy file of vectors [N, D]")
parser.add_argument("num_clusters", nargs="+", type=int)
parser.add_argument("--epochs", type=int, default=30)
args = parser.parse_args()

lines = []
for num_clusters in args.num_clusters:
    labels, objectives, start = [], [], time.perf_counter()
    for seed in (0, 1):
        config = sela_tf.SelaConfig(
            dataset=f"features:{args.features}",
            backbone="identity",
            hidden_units=256,
            feature_dropout=0.5,
            num_heads=1,
            num_clusters=num_clusters,
            epochs=args.epochs,
            learning_rate=0.1,
            lr_schedule="cosine",
            batch_size=128,
            num_relabellings=args.epochs,
            relabel_spacing="linear",
            eval_fraction=0.01,
            seed=seed,
            report=False,
        )
        with tempfile.TemporaryDirectory() as directory:
            sela_tf.run(config, directory)
            with np.load(f"{directory}/labels.npz") as found:
                labels.append(found["labels"][0])
            with open(f"{directory}/metrics.jsonl") as rows:
                objectives.append(float(rows.read().rsplit('"objective_after": ', 1)[1].split(",")[0]))
    stability = adjusted_mutual_info_score(*labels)
    lines.append((num_clusters, stability, np.mean(objectives) / math.log(num_clusters), (time.perf_counter() - start) / 2))

print("\nclusters  stability (AMI of two seeds)  uncertainty (E(p, q) / ln K)  seconds a run")
for line in lines:
    print("{:8d}  {:28.3f}  {:27.3f}  {:13.1f}".format(*line))
