"""The component that trains a model on examples by self-labelling, and writes the model and its labels."""
