"""Optimal transport of images onto equally large clusters; knows nothing of data or models."""
