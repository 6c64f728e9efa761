"""Networks: a functional backbone, an optional hidden layer, and the heads."""
