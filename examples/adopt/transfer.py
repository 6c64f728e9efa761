"""Transfer learning: heads on a frozen body of `keras.applications` label the digits. Lines of sela-tf are marked, below what stood before.

python examples/adopt/transfer.py --weights=imagenet

Without `--weights` the body is random, because ImageNet's weights would be downloaded.
"""

import argparse

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score

import sela_tf  # sela-tf

parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--weights", help="imagenet, or a file of weights; none for a random body")
args = parser.parse_args()

keras.utils.set_random_seed(0)
digits = load_digits()
images, classes = np.repeat(digits.images[..., np.newaxis].astype("float32") * 255 / 16, 3, axis=3), digits.target
# before: targets = classes
targets = np.arange(len(images))  # sela-tf
dataset = tf.data.Dataset.from_tensor_slices((images, targets))

network = keras.applications.MobileNetV2(input_shape=(32, 32, 3), include_top=False, weights=args.weights)
# Images as small as these lose their shapes in later layers.
body = keras.Model(network.input, network.get_layer("block_6_expand_relu").output)
body.trainable = False

inputs = keras.Input((8, 8, 3))
x = keras.layers.UpSampling2D(4, interpolation="bilinear")(inputs)
x = keras.layers.Rescaling(1 / 127.5, offset=-1.0)(x)
x = keras.layers.Flatten()(body(x, training=False))
normalize = keras.layers.Normalization()
normalize.adapt(keras.Model(inputs, x).predict(images, verbose=0))
x = normalize(x)
# before: outputs = keras.layers.Dense(10)(x)
outputs = sela_tf.MultiHead(num_heads=1, num_clusters=10)(x)  # sela-tf
model = keras.Model(inputs, outputs)
# before: model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
model.compile("adam", loss=sela_tf.SelfLabelLoss(sela_tf.LabelTable(1, 10, num_examples=len(images))))  # sela-tf
model.fit(
    dataset.shuffle(len(images)).batch(64),
    epochs=3,
    shuffle=False,
    verbose=2,
    callbacks=[sela_tf.SelfLabelling(model.loss.labels, dataset.batch(500), relabel_steps=range(0, 87, 15))],  # sela-tf
)

predicted = model.predict(images, verbose=0).reshape(len(images), 10).argmax(axis=1)
print(f"NMI with the classes: {normalized_mutual_info_score(classes, predicted):.3f}")
