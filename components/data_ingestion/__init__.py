"""Images from anywhere to shards of tf.train.Example, by Apache Beam."""
