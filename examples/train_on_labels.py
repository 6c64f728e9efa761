"""A new network learns the clusters that a finished run gave the digits.

python -m sela_tf.label --workdir=RUN --dataset=digits --output=labels.parquet
python examples/train_on_labels.py labels.parquet
"""

import sys

import keras
import pyarrow.parquet
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score

if len(sys.argv) != 2:
    sys.exit(__doc__)
table = pyarrow.parquet.read_table(sys.argv[1])
if "split" in table.column_names:
    sys.exit("this file has the run's images split by split: label --dataset=digits, whose rows are the digits in order")
clusters = table["cluster" if "cluster" in table.column_names else "cluster_0"].to_numpy()
digits = load_digits()
images = digits.images[..., None].astype("float32") / 16  # row i of the table is image i

keras.utils.set_random_seed(0)
network = keras.Sequential(
    [
        keras.Input((8, 8, 1)),
        keras.layers.Conv2D(32, 3, padding="same", activation="relu"),
        keras.layers.Conv2D(64, 3, strides=2, padding="same", activation="relu"),
        keras.layers.Flatten(),
        keras.layers.Dense(int(clusters.max()) + 1),
    ]
)
network.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
network.fit(images[:1500], clusters[:1500], epochs=15, verbose=0)

_, accuracy = network.evaluate(images[1500:], clusters[1500:], verbose=0)
found = network.predict(images[1500:], verbose=0).argmax(axis=1)
print(f"{accuracy:.3f} of the clusters of 297 images that were not trained on are found again")
print(f"NMI with the digits' classes, which nobody was told: {normalized_mutual_info_score(digits.target[1500:], found):.3f}")
