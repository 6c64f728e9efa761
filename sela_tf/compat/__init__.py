"""Adaptations to TensorFlow, Keras and the terminal."""
