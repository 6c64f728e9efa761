"""The TFX component DataIngestion, over `components.data_ingestion.executor`."""

# TFX reads the annotations of a component as types, so this module does not postpone them.

import shlex
from typing import Any

from components.data_ingestion.__main__ import main
from components.flag_lines import arguments
from components.tfx_artifacts import tfx

_Examples = tfx.types.standard_artifacts.Examples


@tfx.dsl.components.component
def _data_ingestion(
    examples: tfx.dsl.components.OutputArtifact[_Examples],
    source: tfx.dsl.components.InputArtifact[_Examples] = None,
    settings: tfx.dsl.components.Parameter[str] = "",
    digest: tfx.dsl.components.Parameter[str] = "",
) -> None:
    """Ingests images; `digest` tells TFX's cache when they have changed."""
    from components.data_ingestion.executor import ingest

    if source is not None:
        splits = {"dataset": "train", **({"eval_dataset": "eval"} if "eval" in source.splits else {})}
        settings = (
            shlex.join([f"--{name}=tfrecords:{source.path(split=split)}/*" for name, split in splits.items()]) + f" {settings}"
        )
    manifest = ingest(*arguments(main, settings, examples=examples.uri))
    examples.splits = [*manifest["splits"]]
    examples.set_string_custom_property("digest", manifest["digest"])
    for split, found in manifest["splits"].items():
        examples.set_int_custom_property(f"num_{split}", found["num_examples"])


class DataIngestion(_data_ingestion):
    """The TFX component that makes Examples of images, as `python -m components.data_ingestion` does.

    Its output `examples` is a TFX artifact Examples with the splits train and eval, and the index that the other components read.

    Args:
        settings: Flags of the command in one line, as in a shell; those of its artifacts are left out.
        source: A channel of Examples that a component of TFX's own wrote, such as ImportExampleGen, in place of `--dataset`. Each holds an
            image file in its feature image/encoded, or the one that `--image_key` names. The split eval, if there is one, stays held out.

    Raises:
        ConfigError: A setting cannot be used.
        SourceError: The data set does not exist.
    """

    def __init__(self, *, settings: str = "", source: Any = None):
        if source is not None:
            arguments(main, f"--dataset=tfrecords:- {settings}", examples="-")
            super().__init__(settings=settings, source=source)
            return
        from components.data_ingestion.executor import input_digest

        (configured,) = arguments(main, settings, examples="-")
        super().__init__(settings=settings, digest=input_digest(configured))
