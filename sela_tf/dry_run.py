"""What a run would take, found out by doing a little of everything; writes nothing."""

from __future__ import annotations

import dataclasses
import functools
import time

import numpy as np

from sela_tf.config import SelaConfig
from sela_tf.loop import step_function
from sela_tf.models import stage_names
from sela_tf.parts import (
    check_before_loading,
    compiled_model,
    label_table,
    load_training_data,
    prepare_devices,
    shape_in_words,
    training_views,
)
from sela_tf.self_labelling.schedule import relabel_steps
from sela_tf.transport.sinkhorn import sinkhorn


def dry_run(config: SelaConfig) -> None:
    """Builds the model at its real size, takes one step on 8 images, solves one transport of 2K rows, and prints an estimate."""
    # which would be written
    config = dataclasses.replace(config.absolute(), download=False)
    strategy = prepare_devices(config)
    check_before_loading(config, strategy)
    data = load_training_data(config)
    num_examples = len(data.train)
    replicas = strategy.num_replicas_in_sync
    few = max(min(8, num_examples) // replicas, 1) * replicas
    model = compiled_model(config, data, label_table(config, data, strategy), strategy)
    print(f"{model.name}: {model.count_params():,} parameters, input {shape_in_words(data)}")
    for name in [*stage_names(model), *["hidden"] * bool(config.hidden_units), "heads"]:
        print(f"  {name}: {tuple(model.get_layer(name).output.shape[1:])}")

    step = step_function(model, strategy, config.xla)
    batches = training_views(config, data, batch_size=few, first_step=0, last_step=2, replicas=replicas)
    distributed = iter(strategy.experimental_distribute_dataset(batches))
    loss = float(step(next(distributed))["loss"])
    # the second time without compilation
    start = time.perf_counter()
    float(step(next(distributed))["loss"])
    step_seconds = time.perf_counter() - start
    print(f"one step on {few} images: loss {loss:.4f} (ln K = {np.log(config.num_clusters):.4f}), {step_seconds:.3f} s")

    rows = 2 * config.num_clusters
    log_probs = np.random.default_rng(config.seed).normal(size=(rows, config.num_clusters)).astype(np.float32)
    solve = functools.partial(sinkhorn, log_probs, lam=config.lam, tolerance=config.transport_tolerance)
    solve(max_iterations=1)
    start = time.perf_counter()
    solved = solve(max_iterations=config.transport_max_iterations)
    transport_seconds = time.perf_counter() - start
    print(
        f"one transport of {rows} x {config.num_clusters}: {solved.num_iterations} iterations, marginal error "
        f"{solved.marginal_error:.1e}, {transport_seconds:.2f} s"
    )

    steps_per_epoch = num_examples // config.batch_size
    relabellings = len(
        relabel_steps(
            config.num_relabellings, epochs=config.epochs, steps_per_epoch=steps_per_epoch, spacing=config.relabel_spacing
        )
    )
    epoch_hours = step_seconds / few * config.batch_size * steps_per_epoch / 3600
    # a pass forward is about a third of a step
    pass_hours = epoch_hours / 3 + config.num_heads * transport_seconds * num_examples / rows / 3600
    print(
        f"the run: {config.epochs} epochs of {steps_per_epoch} steps, {relabellings} relabellings of {config.num_heads} head(s): "
        f"about {config.epochs * epoch_hours + relabellings * pass_hours:.2g} hours here, likely less (small batches are slow)"
    )
    sizes = {
        "images": 0 if data.train.images is None else 2 * data.train.images.nbytes,
        "labels": 2 * 8 * config.num_heads * num_examples,
        "features": 4 * model.get_layer("heads").input.shape[-1] * num_examples,
        "transport": 3 * 4 * config.num_clusters * num_examples,
        "network, gradients and momentum": 3 * 4 * model.count_params(),
    }
    print("memory besides activations: " + ", ".join(f"{name} {size / 2**30:.3g} GiB" for name, size in sizes.items() if size))
