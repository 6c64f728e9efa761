"""A trained network in use: exported for TensorFlow Serving, or applied to images whose labels are written to a file."""
