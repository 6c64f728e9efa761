"""Labels that are known and kept in training: clusters of images, or names of images and of clusters."""

from __future__ import annotations

import keras
import numpy as np

from sela_tf.compat.activity import Activity
from sela_tf.data.batch_sizes import LABEL_PASS_BATCH
from sela_tf.data.csv_rows import read_csv
from sela_tf.data.errors import SourceError
from sela_tf.data.label_files import KNOWN_LABELS_HEADERS, find_images, read_known_labels, unknown_image
from sela_tf.data.pipeline import inference_batches
from sela_tf.models.inference import has_empty_statistics
from sela_tf.runs.cluster_names import NAMES_HEADER, read_names
from sela_tf.self_labelling.label_pass import head_log_probs
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import Data, tell
from sela_tf.transport.marginals import is_prior
from sela_tf.transport.size_bounds import parse_size_bounds


def known_labels(config: SelaConfig, data: Data, model: keras.Model) -> np.ndarray | None:
    """Returns the clusters that are known, int64 [T, N] with -1 for the others; None where no file names any.

    Args:
        config: the settings, which name the file.
        data: the images.
        model: the network before its first step. It decides between several clusters of one name.

    Raises:
        SourceError: the file cannot be read so.
    """
    if not config.known_labels:
        return None
    headers = (*KNOWN_LABELS_HEADERS, NAMES_HEADER)
    if read_csv(config.known_labels, headers, setting=_setting(config)).header == NAMES_HEADER:
        return _clusters_by_name(config, data, model)
    known = read_known_labels(config.known_labels, data.train, config.num_clusters, others=[data.held_out, *data.left_out])
    _tell_left_out(known.num_left_out)
    return np.tile(known.labels, (config.num_heads, 1))


def _setting(config: SelaConfig) -> str:
    """Returns the name of the file for messages."""
    return f"`known_labels={config.known_labels}`"


def _tell_left_out(num_left_out: int) -> None:
    if num_left_out:
        tell(f"`known_labels`: {num_left_out} labels are of images that are not trained on, and are left out")


def _clusters_by_name(config: SelaConfig, data: Data, model: keras.Model) -> np.ndarray:
    """Returns the clusters of the images that a file of names calls as it calls clusters, int64 [T, N] with -1 for the others.

    Among several clusters of a head that have its name, an image gets the one of the highest log-probability by its clean view. A cluster
    takes no more images than its equal share, or than its largest size; those that are more certain come first. Heads without a cluster of
    the name hold nothing.
    """
    clusters, num_heads = config.num_clusters, config.num_heads
    names = read_names(config.known_labels, num_heads=num_heads, num_clusters=clusters, setting="known_labels")
    table = names.of_clusters(num_heads, clusters)
    places, called = _named_images(config, data, names.images, set(names.clusters.values()))
    known = np.full((num_heads, len(data.train)), -1, np.int64)
    if not len(places):
        return known
    different, which = np.unique(called, return_inverse=True)
    _, room = parse_size_bounds(config.cluster_sizes)
    if room is None:
        room = len(data.train) if is_prior(config.marginals) or config.cluster_sizes else len(data.train) // clusters
    # Batch statistics are those of batches of all images.
    is_new = has_empty_statistics(model)
    shown = np.arange(len(data.train)) if is_new else places
    views = inference_batches(data.train.take(shown), size=data.size, batch_size=LABEL_PASS_BATCH)
    with Activity("known labels: the clusters that images score highest in"):
        for head, log_probs in head_log_probs(model, views, num_examples=len(shown), batch_statistics=is_new):
            allowed = different[:, np.newaxis] == table[head]
            scores = np.where(allowed[which], log_probs[places] if is_new else log_probs, -np.inf)
            known[head, places] = _choose(scores, room, head, called, _setting(config))
    return known


def _named_images(config: SelaConfig, data: Data, images: dict[str, str], of_clusters: set[str]) -> tuple[np.ndarray, np.ndarray]:
    """Finds the training images that have the name of a cluster.

    Args:
        config: the settings, for messages.
        data: the images.
        images: names of images by source, empty for those that hold nothing.
        of_clusters: the names of clusters.

    Returns:
        (places int64 [M] of the images, their names [M]).

    Raises:
        SourceError: an image is unknown, has two names, or one that no cluster has.
    """
    setting, by_name, train = _setting(config), data.train.names is not None, data.train
    others = [data.held_out, *data.left_out]
    found: dict[int, str] = {}
    num_left_out = 0
    for (source, name), place, other in zip(images.items(), *find_images([*images], train, others, by_name=by_name), strict=True):
        if place < 0 and other < 0:
            raise unknown_image(setting, source, train, by_name=by_name)
        if not name:
            continue
        if place < 0:
            num_left_out += 1
            continue
        if name not in of_clusters:
            raise SourceError(
                f"{setting} calls {source!r} {name!r}, and no cluster has this name: call a cluster so, or leave the name of the image empty"
            )
        if found.setdefault(place, name) != name:
            raise SourceError(f"{setting} calls {source!r} both {found[place]!r} and {name!r}: leave one of them out")
    _tell_left_out(num_left_out)
    return np.array([*found], np.int64), np.array([*found.values()], np.str_)


def _choose(scores: np.ndarray, room: int, head: int, called: np.ndarray, setting: str) -> np.ndarray:
    """Returns the cluster of the highest score of each image, int64 [M], -1 where it may have none; no cluster more than `room` times.

    Args:
        scores: [M, K], -inf for clusters that the image may not have.
        room: the number of images that a cluster may get.
        head: the head, for messages.
        called: the names [M] of the images, for messages.
        setting: the name of the file, for messages.

    Raises:
        SourceError: the clusters of a name have no room left.
    """
    chosen, sizes = np.full(len(scores), -1, np.int64), np.zeros(scores.shape[1], np.int64)
    for image in np.argsort(-scores.max(axis=1), kind="stable"):
        if np.isneginf(scores[image]).all():
            continue
        free = np.where(sizes < room, scores[image], -np.inf)
        if np.isneginf(free).all():
            raise SourceError(
                f"{setting}: {int((called == called[image]).sum())} images are called {str(called[image])!r}, and the clusters of head {head} that "
                f"are called so have room for {room} each: call more clusters so, or fewer images"
            )
        chosen[image] = int(free.argmax())
        sizes[chosen[image]] += 1
    return chosen
