"""What TensorFlow and Keras need so that the library works well with them."""
