"""Images: sources, augmentation, and the tf.data pipeline of (image, example index). Nothing here knows of labels by self-labelling."""
