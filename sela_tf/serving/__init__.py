"""What a trained network says of images: exported for TF Serving, or written to a file of labels."""
