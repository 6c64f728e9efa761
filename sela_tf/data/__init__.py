"""Images in: sources, augmentation, and the tf.data pipeline of (image, example index); knows no labels."""
