"""Is the model good enough? Probes, kNN and clustering, held against thresholds or another model."""
