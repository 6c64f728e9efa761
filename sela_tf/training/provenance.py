"""The data that a run is made of, as its checkpoints know them, so that changed data are noticed when it is continued, and named."""

from __future__ import annotations

import functools
import hashlib
import json
import os
import zlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sela_tf.data.errors import NAMES_SHOWN, SourceError
from sela_tf.data.image_set import ImageSet
from sela_tf.data.left_out import shown_name
from sela_tf.files.digests import digest_of_file
from sela_tf.files.saves import Checkpoint, arrays_under
from sela_tf.runs.network import NetworkDescription
from sela_tf.settings.training import SelaConfig
from sela_tf.training.images import Data, tell

_FINGERPRINTS = {"training": "data_fingerprint", "held_out": "held_out_fingerprint"}
"""The name of the fingerprint of each set in the metadata of a checkpoint and in labels.npz."""
_FILES = ("known_labels", "labels_from", "backbone_weights")
"""Settings that name a file of which the first state is made."""
_CHANGED = "changed_while_training"


class Provenance:
    """The images and the files that a run is made of.

    Args:
        config: the settings, which name the files.
        data: the images.
    """

    def __init__(self, config: SelaConfig, data: Data):
        self._config = config
        self._sets = {"training": data.train, "held_out": data.held_out}
        paths = {name: getattr(config, name) for name in _FILES}
        self._digests = {
            name: digest_of_file(path) for name, path in paths.items() if os.path.isfile(path) and os.access(path, os.R_OK)
        }
        if data.train.classes is not None and data.held_out.classes is not None:
            classes = np.concatenate([data.train.classes, data.held_out.classes]).astype("<i8")
            self._digests["classes"] = hashlib.sha256(classes.tobytes()).hexdigest()
        self._accepted: dict[str, Any] = {}

    @functools.cached_property
    def fingerprints(self) -> dict[str, str]:
        """The fingerprints of the training and the held-out images, by their names in labels.npz."""
        return {name: self._sets[kind].fingerprint() for kind, name in _FINGERPRINTS.items()}

    @property
    def changes(self) -> dict[str, Any]:
        """The object `changed_while_training` of results.json: the changes that were accepted so far; nothing if there were none."""
        return {_CHANGED: self._accepted} if self._accepted else {}

    def meta(self, network: NetworkDescription) -> dict[str, Any]:
        """Returns what the metadata of a checkpoint says of the data; `network` has their shape, rules and statistics."""
        counts = {"num_examples": len(self._sets["training"]), "num_held_out": len(self._sets["held_out"])}
        return {**self.fingerprints, **counts, "digests": self._digests, "network": network.to_json(), **self.changes}

    @functools.cached_property
    def state(self) -> dict[str, np.ndarray]:
        """The arrays of a checkpoint by which a later call says which images changed: for each set eight bytes an image, and names or rows."""
        arrays = {}
        for kind, images in self._sets.items():
            arrays[f"{kind}_checksums"] = images.store.checksums()
            if images.names is None:
                arrays[f"{kind}_rows"] = images.rows.astype(np.min_scalar_type(int(images.rows.max())))
            else:
                packed = zlib.compress(json.dumps(images.names).encode(), 1)
                arrays[f"{kind}_names"] = np.frombuffer(packed, np.uint8)
        return arrays

    def go_on_from(self, saved: Checkpoint, *, workdir: object) -> None:
        """Holds the data to those of a checkpoint, and takes over what it knows of earlier changes.

        Changes are accepted with `accept_changed_data` if the images have the same names, or rows, in the same order.

        Raises:
            SourceError: the data are not the same any more.
        """
        meta = saved.meta
        self._accepted = dict(meta.get(_CHANGED, {}))
        told_apart = arrays_under("images", saved.arrays)
        differences = [
            *(_of_images(kind, images, meta, told_apart) for kind, images in self._sets.items() if not self._is_same(kind, meta)),
            *self._of_digests(meta.get("digests", {})),
        ]
        if "held_out_fingerprint" not in meta:
            tell(
                f"`workdir={workdir}`: its checkpoint is of an older release, which did not note the content of image files, nor held-out "
                "images: a change of these would not be seen. The next checkpoint notes them"
            )
        # A file that is gone, or cannot be read, is not needed any more.
        self._digests = {**meta.get("digests", {}), **self._digests}
        if differences:
            self._accept_or_refuse(differences, workdir)

    def _is_same(self, kind: str, meta: Mapping[str, Any]) -> bool:
        name = _FINGERPRINTS[kind]
        # Older checkpoints say nothing of held-out images.
        then = meta.get(name, self.fingerprints[name])
        return then == self.fingerprints[name] or self._sets[kind].matches(then)

    def _of_digests(self, then: Mapping[str, str]) -> list[_Difference]:
        """Returns what differs of the files and the classes."""
        edited = [name for name, digest in self._digests.items() if then.get(name, digest) != digest]
        words = {name: f"`{name}={getattr(self._config, name)}` was edited" for name in edited if name in _FILES}
        return [_Difference(name, words.get(name, "images have other class labels"), True, True) for name in edited]

    def _accept_or_refuse(self, differences: Sequence[_Difference], workdir: object) -> None:
        said = "; ".join(each.words for each in differences)
        may_be_accepted = all(each.may_be_accepted for each in differences)
        if not self._config.accept_changed_data or not may_be_accepted:
            way = ", or go on with them as they are now with `accept_changed_data=True`" if may_be_accepted else ""
            raise SourceError(
                f"`workdir={workdir}`: the data of this run are not the same any more: {said}. Restore them, or name another directory{way}"
            )
        for each in differences:
            # Several changes of a set add up.
            self._accepted[each.what] = True if each.number is True else each.number + self._accepted.get(each.what, 0)
        tell(f"`accept_changed_data`: the run goes on with changed data, as results.json will say: {said}")


def network_of(saved: Checkpoint) -> NetworkDescription | None:
    """Returns the network that a checkpoint is of; None for one of an older release."""
    return NetworkDescription.from_json(saved.meta["network"]) if "network" in saved.meta else None


class _Difference(NamedTuple):
    """A part of the data that is not as a checkpoint has it."""

    what: str
    """"training_images", "held_out_images", "classes", or the setting that names a file."""
    words: str
    number: int | bool
    """The number of changed images; True for what is not counted."""
    may_be_accepted: bool


def _of_images(kind: str, images: ImageSet, meta: Mapping[str, Any], arrays: Mapping[str, np.ndarray]) -> _Difference:
    """Returns how a set of images differs from that of a checkpoint.

    Args:
        kind: "training" or "held_out".
        images: the set.
        meta: the metadata of the checkpoint.
        arrays: its arrays that tell the images apart, as `Provenance.state` gave them; none of an older release.
    """
    name = f"{kind.replace('_', '-')} images of {images.full_name}"
    what = f"{kind}_images"
    keys: Sequence[Any]
    if f"{kind}_names" in arrays:
        keys, own = json.loads(zlib.decompress(arrays[f"{kind}_names"].tobytes())), images.names
    elif f"{kind}_rows" in arrays:
        keys, own = arrays[f"{kind}_rows"].tolist(), images.rows.tolist() if images.names is None else None
    else:
        return _Difference(
            what, f"the {meta['num_examples']} {name} ({len(images)} now; the checkpoint is too old to tell which)", 0, False
        )
    if own is None:
        return _Difference(what, f"{name}, which are of another kind of source", 0, False)
    then = dict(zip(keys, arrays[f"{kind}_checksums"].tolist(), strict=True))
    now = dict(zip(own, images.store.checksums().tolist(), strict=True))
    changed = [key for key, checksum in now.items() if then.get(key, checksum) != checksum]
    new, gone = [key for key in now if key not in then], [key for key in then if key not in now]
    verbs = (("changed", "changed", changed), ("is new", "are new", new), ("is gone", "are gone", gone))
    parts = [f"{len(some)} {one if len(some) == 1 else several} ({_shown(some)})" for one, several, some in verbs if some]
    same_order = list(then) == list(now)
    if not parts:
        parts = ["their number of channels or their shape is another" if same_order else "their order is another"]
    return _Difference(what, f"{name}: {', '.join(parts)}", len(changed), same_order)


def _shown(keys: Sequence[str | int]) -> str:
    """Returns the first names or rows of images, for a message."""
    words = [shown_name(key) if isinstance(key, str) else f"row {key}" for key in keys[:NAMES_SHOWN]]
    return ", ".join(words) + (f" and {len(keys) - len(words)} more" if len(keys) > len(words) else "")
