"""Steps of a pipeline, as TFX has them: data in, labels and a model, a verdict. Each works alone, from Python and on Kubeflow."""
