"""Components of a pipeline, after TFX: ingestion, self-labelling and evaluation. Each runs alone, from Python, or on Kubeflow.

They are not part of the installed package; they run from a checkout or from the image of components/Dockerfile.
"""
