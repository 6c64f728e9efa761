"""A Keras callback that another callback's work at the end of an epoch is spaced by."""

from __future__ import annotations

import keras


class EveryEpochs(keras.callbacks.Callback):
    """A Keras callback that hands another one every n-th end of an epoch, and the last one, so that short epochs cost little.

    Args:
        callback: the callback, which works at the end of an epoch.
        epochs: the number n.
        network: the model that the callback looks at; None for the one that is trained.
    """

    def __init__(self, callback: keras.callbacks.Callback, epochs: int, *, network: keras.Model | None = None):
        super().__init__()
        self.callback, self.epochs, self.network = callback, epochs, network

    def set_model(self, model: keras.Model) -> None:
        super().set_model(model)
        self.callback.set_model(model if self.network is None else self.network)

    def set_params(self, params: dict) -> None:
        super().set_params(params)
        self.callback.set_params(params)

    def on_train_begin(self, logs: dict | None = None) -> None:
        self.callback.on_train_begin(logs)

    def on_epoch_end(self, epoch: int, logs: dict | None = None) -> None:
        if (epoch + 1) % self.epochs == 0 or epoch + 1 == self.params["epochs"]:
            self.callback.on_epoch_end(epoch, logs)

    def on_train_end(self, logs: dict | None = None) -> None:
        self.callback.on_train_end(logs)
