"""SeLa on a Keras model of one's own, in `model.fit`."""

import keras
import numpy as np
import sklearn.datasets
import tensorflow as tf

import sela_tf

images = sklearn.datasets.load_digits().images[..., np.newaxis].astype("float32")
num_examples, batch_size, epochs = len(images), 64, 3

inputs = keras.Input((8, 8, 1))
x = keras.layers.Conv2D(32, 3, activation="relu")(inputs)
x = keras.layers.GlobalAveragePooling2D()(x)
logits = sela_tf.MultiHead(num_heads=2, num_clusters=16)(x)  # [B, 2, 16]
model = keras.Model(inputs, logits)

labels = sela_tf.LabelTable(num_heads=2, num_clusters=16, num_examples=num_examples, seed=0)
dataset = tf.data.Dataset.from_tensor_slices((images, np.arange(num_examples)))  # (image, index from 0 to N - 1)
steps = sela_tf.relabel_steps(10, epochs=epochs, steps_per_epoch=num_examples // batch_size)  # at most 10 relabellings

model.compile("adam", loss=sela_tf.SelfLabelLoss(labels))
model.fit(
    dataset.shuffle(num_examples).batch(batch_size, drop_remainder=True),
    epochs=epochs,
    shuffle=False,  # The data set shuffles itself; Keras would warn.
    verbose=2,
    callbacks=[sela_tf.SelfLabelling(labels, dataset.batch(500), relabel_steps=steps)],
)
print(labels.labels.shape)  # (2, 1797): the cluster of every image under each head
