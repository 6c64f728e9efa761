"""Keras callbacks that watch a training: monitors of the representation and the clusters, and the collapse doctor."""
