"""A project's pipeline of TFX that gains labels: between the marks stand the lines that were added.

The records are TFRecord files of tf.train.Examples, DIR/train/* and DIR/eval/*, with an image file in image/encoded. Run it from the checkout,
or with the checkout on PYTHONPATH: python -m examples.tfx_project DIR ROOT
"""

import sys

from tfx import v1 as tfx

# added: from here
from components.data_ingestion.component import DataIngestion
from components.self_labelling.component import SelfLabelling

# added: to here


def create_pipeline(records: str, root: str) -> tfx.dsl.Pipeline:
    """Returns a pipeline that validates records, labels their images, and pushes the network that labels new ones."""
    splits = [tfx.proto.Input.Split(name=name, pattern=f"{name}/*") for name in ("train", "eval")]
    example_gen = tfx.components.ImportExampleGen(input_base=records, input_config=tfx.proto.Input(splits=splits))
    statistics_gen = tfx.components.StatisticsGen(examples=example_gen.outputs["examples"])
    schema_gen = tfx.components.SchemaGen(statistics=statistics_gen.outputs["statistics"])
    statistics, schema = statistics_gen.outputs["statistics"], schema_gen.outputs["schema"]
    validator = tfx.components.ExampleValidator(statistics=statistics, schema=schema)
    components = [example_gen, statistics_gen, schema_gen, validator]
    # added: from here
    images = DataIngestion(source=example_gen.outputs["examples"])
    settings = "--backbone=resnet8 --num_heads=2 --num_clusters=32 --epochs=2 --batch_size=64"
    labelling = SelfLabelling(examples=images.outputs["examples"], settings=settings)
    components += [images, labelling]
    # added: to here
    metadata = tfx.orchestration.metadata.sqlite_metadata_connection_config(f"{root}/metadata.sqlite")
    return tfx.dsl.Pipeline("project", f"{root}/artifacts", metadata, components)


if __name__ == "__main__":
    tfx.orchestration.LocalDagRunner().run(create_pipeline(*sys.argv[1:]))
