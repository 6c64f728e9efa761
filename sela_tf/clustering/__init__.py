"""Clusters of vectors without a network: k-means with balanced clusters, by the exact transport."""
