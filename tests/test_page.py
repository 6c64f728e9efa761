"""The parts of a run's page: its sprites, its clusters, and the file as a whole, whatever names its images have."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import html.parser
import io
import json

import numpy as np
import pytest
from PIL import Image
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.special import entr
from shown import EVIL, page_content, shown_images

from sela_tf.reporting.page import sprites
from sela_tf.reporting.page.charts import charts_of
from sela_tf.reporting.page.clusters import describe_clusters
from sela_tf.reporting.page.images import ShownImages
from sela_tf.reporting.page.sprites import CELLS, COLUMNS, make_sprites, thumbnail_size
from sela_tf.reporting.page.write import PageContent, write_page


@pytest.fixture
def images() -> ShownImages:
    return shown_images()


@pytest.fixture
def content(images) -> PageContent:
    return page_content(images)


def _unit(vectors):
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class TestSprites:
    def test_each_image_is_in_its_cell(self, images):
        made = make_sprites(images.thumbnails)
        assert len(made.files) == 3
        for i in (0, 17, 255, 256, 599):
            with Image.open(io.BytesIO(made.files[i // CELLS])) as sheet:
                assert f"image/{sheet.format.lower()}" == made.kind
                pixels = np.asarray(sheet.convert("RGB"), float)
            row, column = divmod(i % CELLS, COLUMNS)
            cell = pixels[row * 16 : row * 16 + 16, column * 16 : column * 16 + 16]
            # lossy: the middles of the four squares are what was put in
            assert np.abs(cell[4::8, 4::8] - images.thumbnails[i, 4::8, 4::8]).max() < 40

    def test_they_keep_within_their_bytes(self, rng, monkeypatch):
        noise = rng.integers(0, 256, (700, 16, 16, 1), dtype=np.uint8)
        whole = sum(map(len, make_sprites(noise).files))
        monkeypatch.setattr(sprites, "_BYTES", whole * 0.7)
        assert sum(map(len, make_sprites(noise).files)) <= whole * 0.72

    @pytest.mark.parametrize(
        ("count", "size", "channels", "expected"),
        [
            (50_000, (28, 28), 1, (28, 28)),
            (50_000, (64, 64), 3, (24, 24)),
            (100, (224, 224), 3, (96, 96)),
            (10, (8, 16), 1, (8, 16)),
        ],
    )
    def test_thumbnails_shrink_only_where_they_must(self, count, size, channels, expected):
        assert thumbnail_size(count, size, channels) == expected


class TestClusters:
    def test_they_are_described_by_their_members(self, images):
        table = describe_clusters(images, 0, np.bincount(images.clusters[0], minlength=9))
        unit = _unit(images.embedding.astype(np.float64))
        centres = np.stack([unit[images.clusters[0] == k].mean(axis=0) if k != 4 else np.full(5, np.inf) for k in range(9)])
        for k in (0, 1, 2, 3, 5, 6, 7, 8):
            inside = images.clusters[0] == k
            assert table.held_out[k] == (inside & images.held_out).sum()
            assert table.confidence[k] == pytest.approx(images.margins[0][inside].mean(), abs=1e-6)
            shares = np.bincount(images.classes[inside], minlength=3) / inside.sum()
            assert table.entropy[k] == pytest.approx(entr(shares).sum(), abs=1e-6)
            distances = np.linalg.norm(centres - centres[k], axis=1)
            expected = [other for other in np.argsort(distances) if other not in (k, 4)][:6]
            assert table.neighbours[k].tolist() == expected
            order = np.flatnonzero(inside)[np.argsort(-(unit[inside] @ centres[k]))]
            assert table.typical[order].tolist() == list(range(inside.sum()))
        assert (table.neighbours[4] == -1).all()
        assert table.confidence[4] == 0

    def test_the_merge_tree_is_that_of_scipy(self, images):
        table = describe_clusters(images, 0, np.bincount(images.clusters[0], minlength=9))
        filled = [0, 1, 2, 3, 5, 6, 7, 8]
        unit = _unit(images.embedding)
        tree = linkage(np.stack([unit[images.clusters[0] == k].mean(axis=0) for k in filled]).astype(np.float64), "ward")
        for number in range(1, 9):
            parts = {k: {k} for k in filled}
            for i, (a, b) in enumerate(table.merges[: 8 - number].tolist()):
                parts[9 + i] = parts.pop(a) | parts.pop(b)
            found = fcluster(tree, number, "maxclust")
            assert sorted(map(sorted, parts.values())) == sorted(
                [filled[i] for i in np.flatnonzero(found == each)] for each in np.unique(found)
            )

    def test_one_cluster_has_no_tree(self, images):
        alone = images._replace(clusters=np.zeros_like(images.clusters))
        table = describe_clusters(alone, 0, np.bincount(alone.clusters[0], minlength=9))
        assert table.merges.shape == (0, 2)
        assert table.proposed == 1


class _Parts(html.parser.HTMLParser):
    """The elements of a page by tag, with their attributes, and the text of the data."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[str] = []
        self.data: dict[str, str] = {}
        self._id = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._id = dict(attrs).get("id") or ""

    def handle_data(self, data):
        if self._id.startswith("data-"):
            self.data.setdefault(self._id.removeprefix("data-"), data)


def _array(parts: _Parts, name: str, facts: dict) -> np.ndarray:
    return np.frombuffer(gzip.decompress(base64.b64decode(parts.data[name])), facts["kinds"][name])


class TestPage:
    def test_it_holds_every_image_once_under_its_own_name(self, content, images, tmp_path):
        write_page(tmp_path / "page.html", content)
        parts = _Parts((tmp_path / "page.html").read_text())
        facts = json.loads(gzip.decompress(base64.b64decode(parts.data["facts"])))
        assert sorted(facts["sources"]) == sorted(images.sources)
        order = [images.sources.index(source) for source in facts["sources"]]
        assert (_array(parts, "clusters", facts).reshape(2, -1) == images.clusters[:, order]).all()
        assert (_array(parts, "held_out", facts) == images.held_out[order]).all()
        assert (_array(parts, "classes", facts) == images.classes[order] + 1).all()
        assert np.abs(_array(parts, "margins", facts).reshape(2, -1) / 127 - images.margins[:, order]).max() < 1 / 127
        nearest = _array(parts, "nearest", facts).reshape(600, 4)
        assert (np.array(order)[nearest] == images.nearest[order]).all()
        assert (np.diff(_array(parts, "clusters", facts)[:600].astype(int)) >= 0).all()
        assert [(order[i], why, group) for i, why, group in facts["review"]["first"]] == content.review["first"]
        assert [order[i] for i in facts["review"]["duplicates"][0]["images"]] == [1, 599]
        assert [order[i] for i in facts["review"]["rankings"]["low_margin"]] == [7, 599]
        assert (_array(parts, "can_mark", facts) == images.can_mark[order]).all()
        assert facts["names"] == {"clusters": {"0,3": EVIL}, "images": {EVIL: ""}}

    def test_names_cannot_become_elements(self, content, tmp_path):
        write_page(tmp_path / "page.html", content)
        text = (tmp_path / "page.html").read_text()
        plain = dataclasses.replace(
            content,
            report={**content.report, "title": "t", "warnings": ["w"]},
            settings={"dataset": "d"},
            left_out=[["l", "damaged"]],
        )
        write_page(tmp_path / "plain.html", plain)
        assert "<img" not in text
        assert _Parts(text).tags == _Parts((tmp_path / "plain.html").read_text()).tags

    def test_the_same_content_gives_the_same_bytes(self, content, tmp_path):
        write_page(tmp_path / "one.html", content)
        write_page(tmp_path / "two.html", content)
        assert (tmp_path / "one.html").read_bytes() == (tmp_path / "two.html").read_bytes()

    def test_charts_show_the_numbers(self, content):
        charts = {chart.title: chart for chart in charts_of(content.report)}
        loss = charts["training loss, nats"]
        assert [text for _, text in loss.y_ticks] == ["0", "0.5", "1", "1.5", "2"]
        assert loss.lines[0].points == "180.0,0.0 360.0,42.5"
        assert len(charts["share of labels that a relabelling changed"].lines) == 2
        assert "kNN accuracy during training" not in charts
