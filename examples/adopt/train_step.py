"""A `keras.Model` with a `train_step` of its own labels the digits itself. Lines of sela-tf are marked, below what stood there before."""

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits
from sklearn.metrics import normalized_mutual_info_score

import sela_tf  # sela-tf


class Clipped(keras.Model):
    """A model that clips its gradients, and shows their norm."""

    def train_step(self, data):
        """Takes an optimizer step from a batch of (images, targets)."""
        images, targets = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(images, targets, self(images, training=True))
        gradients, norm = tf.clip_by_global_norm(tape.gradient(loss, self.trainable_variables), 1.0)
        self.optimizer.apply_gradients(zip(gradients, self.trainable_variables, strict=True))
        return {"loss": loss, "gradient_norm": norm}


keras.utils.set_random_seed(0)
images, classes = load_digits().images[..., np.newaxis].astype("float32") / 16, load_digits().target
# before: targets = classes
targets = np.arange(len(images))  # sela-tf
dataset = tf.data.Dataset.from_tensor_slices((images, targets))

inputs = keras.Input((8, 8, 1))
x = keras.layers.Conv2D(32, 3, padding="same", activation="relu")(inputs)
x = keras.layers.BatchNormalization()(x)
x = keras.layers.Flatten()(keras.layers.MaxPooling2D()(x))
# before: outputs = keras.layers.Dense(10)(x)
outputs = sela_tf.MultiHead(num_heads=1, num_clusters=10)(x)  # sela-tf
model = Clipped(inputs, outputs)
# before: model.compile("adam", loss=keras.losses.SparseCategoricalCrossentropy(from_logits=True))
model.compile("adam", loss=sela_tf.SelfLabelLoss(sela_tf.LabelTable(1, 10, num_examples=len(images))))  # sela-tf
model.fit(
    dataset.shuffle(len(images)).batch(64),
    epochs=6,
    shuffle=False,
    verbose=2,
    callbacks=[sela_tf.SelfLabelling(model.loss.labels, dataset.batch(500), relabel_steps=range(0, 174, 10))],  # sela-tf
)

predicted = model.predict(images, verbose=0).reshape(len(images), 10).argmax(axis=1)
print(f"NMI with the classes: {normalized_mutual_info_score(classes, predicted):.3f}")
