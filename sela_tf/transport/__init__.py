"""Optimal transport of images onto clusters of given sizes. These modules know nothing of data sets or networks."""
