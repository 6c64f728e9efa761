"""Swapped prediction as in SwAV (arXiv 2006.09882) on scikit-learn's digits: `sinkhorn_op` makes the codes of every batch."""

import keras
import sklearn.datasets
import tensorflow as tf
from sklearn.metrics import normalized_mutual_info_score

import sela_tf

images, classes = sklearn.datasets.load_digits(return_X_y=True)
images = images.reshape(-1, 8, 8, 1).astype("float32") / 16
keras.utils.set_random_seed(0)


def view(batch):
    """Returns the images shifted, of other brightness, with noise."""
    batch = tf.image.random_crop(tf.pad(batch, [[0, 0], [1, 1], [1, 1], [0, 0]]), tf.shape(batch))
    return batch * tf.random.uniform([tf.shape(batch)[0], 1, 1, 1], 0.6, 1.4) + tf.random.normal(tf.shape(batch), stddev=0.1)


class Swav(keras.Model):
    """A model that predicts the codes of one view from the other."""

    def train_step(self, batch):
        """Makes one step of gradient descent."""
        views = [view(batch), view(batch)]
        with tf.GradientTape() as tape:
            cosines = [self(each, training=True) for each in views]  # [B, K], of the features and the prototypes
            codes = [sela_tf.sinkhorn_op(each, lam=20.0, tolerance=0.0, max_iterations=3).plan for each in cosines]
            loss = tf.nn.softmax_cross_entropy_with_logits(codes[0], cosines[1] / 0.1)
            loss += tf.nn.softmax_cross_entropy_with_logits(codes[1], cosines[0] / 0.1)
        self.optimizer.apply_gradients(zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True))
        return {"cross_entropy": tf.reduce_mean(loss)}


inputs = keras.Input((8, 8, 1))
x = keras.layers.Conv2D(32, 3, activation="relu")(inputs)
x = keras.layers.Conv2D(64, 3, activation="relu")(x)
features = keras.layers.UnitNormalization()(keras.layers.Dense(32)(keras.layers.Flatten()(x)))
prototypes = keras.layers.Dense(30, use_bias=False, kernel_constraint="unit_norm")(features)
model = Swav(inputs, prototypes)
model.compile(keras.optimizers.Adam(1e-4))
batches = tf.data.Dataset.from_tensor_slices(images).shuffle(len(images)).batch(256, drop_remainder=True)
for name, epochs in (("before", 0), ("after", 40)):
    model.fit(batches, epochs=epochs, shuffle=False, verbose=0)
    clusters = model.predict(images, verbose=0).argmax(axis=1)
    print(f"{name}: NMI of the prototypes and the classes {normalized_mutual_info_score(classes, clusters):.3f}")
