"""The component that writes images from any source to shards of tf.train.Example, by Apache Beam."""
