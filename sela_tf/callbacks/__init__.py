"""Keras callbacks that watch a training: monitors of the clusters and the representation, and the collapse doctor."""
