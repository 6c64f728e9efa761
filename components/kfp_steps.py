"""Components and the pipeline of components/pipeline.py, defined for Kubeflow Pipelines (kfp)."""

# kfp reads the annotations of a component as types, so this module does not postpone them. kfp runs the source of the function only, so
# each function imports the modules that it needs.

import hashlib
import importlib
import pathlib
import shlex
import sys
from collections.abc import Callable
from typing import Any

from kfp import dsl

from components.reports import mean_figures
from components.settings import PipelineSettings
from sela_tf.cli.command import load_tensorflow


def data_ingestion(examples: dsl.Output[dsl.Dataset], settings: str, root: str):
    """Makes Examples of images; `settings` are flags in one line, as in a shell."""
    from components.kfp_steps import call, place

    place(examples, root, "data_ingestion", settings)
    call("data_ingestion", settings, examples=examples.path)


def self_labelling(
    examples: dsl.Input[dsl.Dataset],
    model: dsl.Output[dsl.Model],
    labels: dsl.Output[dsl.Dataset],
    metrics: dsl.Output[dsl.Artifact],
    figures: dsl.Output[dsl.Metrics],
    settings: str,
    scratch: str,
    root: str,
):
    """Makes a model and its labels of Examples; `settings` are flags in one line, as in a shell."""
    import tempfile

    from components.kfp_steps import call, digest_of_examples, log_figures, place

    made_of = settings + digest_of_examples(examples.path)
    for output, name in ((model, "model"), (labels, "labels"), (metrics, "metrics")):
        place(output, root, f"self_labelling/{name}", made_of)
    paths = {"examples": examples.path, "model": model.path, "labels": labels.path, "metrics": metrics.path}
    # On a cluster an artifact may lie on a mounted bucket, in which training cannot work.
    call("self_labelling", settings, **paths, scratch="" if root else scratch or tempfile.mkdtemp())
    log_figures(figures, f"{metrics.path}/results.json", "trained")


def linear_probe(
    examples: dsl.Input[dsl.Dataset],
    model: dsl.Input[dsl.Model],
    evaluation: dsl.Output[dsl.Artifact],
    blessing: dsl.Output[dsl.Artifact],
    report: dsl.Output[dsl.Markdown],
    figures: dsl.Output[dsl.Metrics],
    settings: str,
    root: str,
) -> bool:
    """Evaluates a model on Examples, and returns True if the model is blessed; `settings` are flags in one line, as in a shell."""
    import json
    import shutil

    from components.kfp_steps import call, digest_of_examples, digest_of_model, log_figures, place

    made_of = settings + digest_of_examples(examples.path) + digest_of_model(model.path)
    for output, name in ((evaluation, "evaluation"), (blessing, "blessing")):
        place(output, root, f"linear_probe/{name}", made_of)
    paths = {"examples": examples.path, "model": model.path, "evaluation": evaluation.path, "blessing": blessing.path}
    call("linear_probe", settings, **paths)
    shutil.copyfile(f"{evaluation.path}/evaluation.md", report.path)
    log_figures(figures, f"{evaluation.path}/evaluation.json", "model", "figures")
    with open(f"{evaluation.path}/evaluation.json") as file:
        return json.load(file)["blessed"]


def make_pipeline(settings: PipelineSettings, ingestion: str, training: str, probing: str) -> Callable[..., Any]:
    """Returns the pipeline, for kfp to run or to compile.

    Args:
        settings: The settings of the pipeline.
        ingestion: Flags of the ingestion in one line, as in a shell; the default of the pipeline's parameter.
        training: Flags of the training; a default, too.
        probing: Flags of the linear probe; a default, too.
    """

    def component(function: Callable[..., Any]) -> Callable[..., Any]:
        return dsl.component(function, base_image=settings.image, install_kfp_package=False)

    ingest, train, probe = (component(each) for each in (data_ingestion, self_labelling, linear_probe))

    def sized(task: dsl.PipelineTask) -> dsl.PipelineTask:
        if settings.compile:
            task.set_cpu_limit(settings.cpu).set_memory_limit(settings.memory).set_retry(settings.retries, "60s", 2.0)
        return task

    @dsl.pipeline(
        name="sela-tf", description="A network labels its own images by optimal transport, learns from them, and is probed."
    )
    def sela(ingestion: str = ingestion, training: str = training, probing: str = probing) -> None:
        root = settings.root
        # kfp's cache would not notice that images were added.
        examples = sized(ingest(settings=ingestion, root=root)).set_caching_options(False).outputs["examples"]
        trained = sized(train(examples=examples, settings=training, scratch=settings.scratch, root=root))
        if settings.accelerator:
            trained.set_accelerator_type(settings.accelerator).set_accelerator_limit(1)
        sized(probe(examples=examples, model=trained.outputs["model"], settings=probing, root=root))

    return sela


def place(output: Any, root: str, step: str, made_of: str) -> None:
    """Places an output below `root`, where the same step finds it again; on a cluster (no root) it keeps the place that kfp gave it.

    Args:
        output: The artifact of kfp.
        root: The directory of all artifacts on this machine; "" on a cluster.
        step: The step and the output, as a path below the root.
        made_of: A text that changes with the inputs of the step.
    """
    if root:
        output.uri = f"{root}/{step}/{hashlib.sha256(made_of.encode()).hexdigest()[:12]}"
    else:
        pathlib.Path(output.path).parent.mkdir(parents=True, exist_ok=True)


def call(component: str, settings: str, **directories: str) -> None:
    """Runs the command of a component in this process.

    Args:
        component: The name of the component.
        settings: Its flags in one line, as in a shell.
        directories: Paths of its artifacts, by the names of their settings.

    Raises:
        SystemExit: The command failed; it has printed the reason.
    """
    places = [f"--{name}={path}" for name, path in directories.items() if path]
    status = importlib.import_module(f"components.{component}.__main__").main([component, *shlex.split(settings), *places])
    if status:
        sys.exit(status)


def digest_of_examples(directory: str) -> str:
    """Returns the digest of the images. Images that were ingested again and are the same need no new training."""
    load_tensorflow()
    from sela_tf.data.records import read_manifest

    return str(read_manifest(directory, name=directory)["digest"])


def digest_of_model(directory: str) -> str:
    """Returns the fingerprint of a model's inputs."""
    load_tensorflow()
    from components.artifacts import read_made_of

    found = read_made_of(directory)
    return str(found and found["fingerprint"])


def log_figures(figures: Any, path: str, *keys: str) -> None:
    """Logs the numbers of a JSON file (for lists their mean) to kfp's metrics, which Kubeflow shows on the page of a run."""
    import json

    found = json.loads(pathlib.Path(path).read_text())
    for key in keys:
        found = found[key]
    for name, value in mean_figures(found).items():
        figures.log_metric(name, value)
