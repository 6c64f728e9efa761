"""The component that evaluates a model by probes, kNN and clustering, and compares it with thresholds or another model."""
