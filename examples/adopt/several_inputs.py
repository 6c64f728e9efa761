"""A functional model of two inputs labels the digits itself. Lines of sela-tf are marked, below what stood there before."""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score

import sela_tf  # sela-tf

keras.utils.set_random_seed(0)
images, classes = load_digits().images[..., np.newaxis].astype("float32") / 16, load_digits().target
ink = np.stack([images.mean(axis=(1, 2, 3)), images.std(axis=(1, 2, 3))], axis=1)
given = {"image": images, "ink": ink}
# before: targets = classes
targets = np.arange(len(images))  # sela-tf
dataset = tf.data.Dataset.from_tensor_slices((given, targets))

inputs = {"image": keras.Input((8, 8, 1), name="image"), "ink": keras.Input((2,), name="ink")}
x = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(inputs["image"])
x = keras.layers.Flatten()(keras.layers.MaxPooling2D()(x))
x = keras.layers.Concatenate()([x, keras.layers.Dense(16, activation="relu")(inputs["ink"])])
# before: outputs = keras.layers.Dense(10)(x)
outputs = sela_tf.MultiHead(num_heads=1, num_clusters=10)(x)  # sela-tf
model = keras.Model(inputs, outputs)
# before: model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True), metrics=["accuracy"])
model.compile("adam", loss=sela_tf.SelfLabelLoss(sela_tf.LabelTable(1, 10, num_examples=len(images))))  # sela-tf
model.fit(
    dataset.shuffle(len(images)).batch(64),
    epochs=6,
    shuffle=False,
    verbose=2,
    callbacks=[sela_tf.SelfLabelling(model.loss.labels, dataset.batch(500), relabel_steps=range(0, 174, 10))],  # sela-tf
)

predicted = model.predict(given, verbose=0).reshape(len(images), 10).argmax(axis=1)
print(f"NMI with the classes: {normalized_mutual_info_score(classes, predicted):.3f}")
