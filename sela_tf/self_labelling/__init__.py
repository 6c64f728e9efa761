"""The self-labelling of the paper (arXiv 1911.05371): a table holds the labels, the loss looks them up, a callback recomputes them."""
