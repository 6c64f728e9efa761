"""The page of a run in Debian's Chromium, used as a stranger would: by mouse and by keyboard, at the width of a desk and of a phone."""

from __future__ import annotations

import json
import os
import pathlib
import re
import shutil

import numpy as np
import pytest
from fixtures import run_modules
from shown import EVIL, page_content, shown_images

from sela_tf.reporting.page.write import write_page
from sela_tf.runs.cluster_names import read_names

sync_api = pytest.importorskip("playwright.sync_api")

CHROMIUM = "/usr/bin/chromium"

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("browser")]


@pytest.fixture(scope="module")
def browser():
    if not os.path.exists(CHROMIUM):
        if os.environ.get("CI") == "true":
            pytest.fail("there is no Chromium: make system-deps")
        pytest.skip("there is no Chromium: make system-deps")
    with sync_api.sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield chromium
        chromium.close()


@pytest.fixture
def opened(browser):
    """Opens a page from disk; errors of its script, and requests that leave the disk, fail the test."""
    contexts, wrong = [], []

    def open_page(path: pathlib.Path, *, width: int = 1280, context=None):
        if context is None:
            context = browser.new_context(viewport={"width": width, "height": 900}, accept_downloads=True)
            contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: request.url.startswith(("file:", "blob:")) or wrong.append(request.url))
        page.goto(f"file://{path}")
        page.wait_for_selector("html[data-ready]")
        return page

    yield open_page
    for context in contexts:
        context.close()
    assert wrong == []


@pytest.fixture(scope="module")
def report(finished) -> pathlib.Path:
    return finished[0] / "report.html"


@pytest.fixture(scope="module")
def labels(finished) -> dict[str, np.ndarray]:
    with np.load(finished[0] / "labels.npz") as archive:
        return dict(archive)


def _saved(page, tmp_path) -> pathlib.Path:
    with page.expect_download() as download:
        page.click("#download")
    download.value.save_as(tmp_path / "names.csv")
    assert download.value.suggested_filename == "names.csv"
    return tmp_path / "names.csv"


def test_overview_has_the_verdict_and_the_curves(report, finished, opened):
    page = opened(report)
    said = json.loads((finished[0] / "report.json").read_text())
    assert page.inner_text("h1") == said["title"]
    assert page.inner_text(".verdict") == f"{said['verdict']}."
    assert page.locator("figure.chart").count() >= 6
    assert page.locator("polyline").count() > 8
    entropy = page.locator("figure.chart", has_text="mean entropy of the classes")
    assert entropy.locator("polyline").count() == 2
    assert "num_clusters" in page.text_content(".settings")


def test_all_clusters_are_listed_and_sorted(report, labels, opened):
    page = opened(report)
    page.click("nav >> text=Clusters")
    assert page.locator("main .row").count() == 16
    page.select_option("#sort", "number")
    shown = page.locator("main .row a[href^='#cluster/']").all_text_contents()
    assert shown == [f"cluster {k}" for k in range(16)]
    sizes = np.bincount(labels["labels"][0], minlength=16)
    assert f"{sizes[0]} training images" in page.locator("main .row").first.text_content()
    # A strip is filled when one scrolls to it.
    page.wait_for_selector(".row .thumb")
    assert page.locator("main .row").last.locator(".thumb").count() == 0
    page.locator("main .row").last.scroll_into_view_if_needed()
    page.locator("main .row").last.locator(".thumb").first.wait_for()


def test_heads_are_switched(report, labels, opened):
    page = opened(report)
    page.goto(f"file://{report}#cluster/3")
    assert f"{np.bincount(labels['labels'][0])[3]} training" in page.inner_text("#view .facts >> nth=0")
    page.select_option("#head", "1")
    assert f"{np.bincount(labels['labels'][1])[3]} training" in page.inner_text("#view .facts >> nth=0")


def test_an_image_shows_its_clusters_and_neighbours(report, labels, opened):
    page = opened(report)
    page.goto(f"file://{report}#cluster/3")
    page.click("#view .thumb >> nth=0")
    row = int(page.inner_text("#view h1"))
    place = labels["source_rows"].tolist().index(row)
    assert "training" in page.inner_text("#view .figure")
    for head in range(2):
        assert page.locator(f"#view table a[href='#cluster/{labels['labels'][head, place]}']").count() >= 1
    page.locator("#view .strip .thumb").nth(7).wait_for()
    page.go_back()
    assert page.inner_text("#view h1") == "Cluster 3"


def test_names_are_typed_kept_and_downloaded(report, opened, tmp_path):
    page = opened(report)
    page.click("nav >> text=Clusters")
    page.select_option("#sort", "number")
    for cluster in (0, 7):
        page.get_by_label(f"name of cluster {cluster}", exact=True).fill('a "round", one')
        page.keyboard.press("Tab")
    page.select_option("#head", "1")
    page.get_by_label("name of cluster 2", exact=True).fill("café")
    page.keyboard.press("Enter")
    page.click(".row >> nth=4 >> .thumb >> nth=0")
    source = page.inner_text("#view h1")
    page.check("#mark")
    page.goto(f"file://{report}#cluster/5")
    page.click("#view .thumb >> nth=3")
    other = page.inner_text("#view h1")
    page.fill("#belongs", "café")
    page.keyboard.press("Tab")
    assert page.inner_text("#named") == "3 clusters named, 2 images marked"
    again = opened(report, context=page.context)
    assert again.inner_text("#named") == "3 clusters named, 2 images marked"
    found = read_names(_saved(again, tmp_path), num_heads=2, num_clusters=16, setting="names")
    assert found.clusters == {(0, 0): 'a "round", one', (0, 7): 'a "round", one', (1, 2): "café"}
    assert found.images == {source: "", other: "café"}
    # A name is taken back.
    again.goto(f"file://{report}#cluster/7")
    again.fill("#view .name >> nth=0", "")
    again.keyboard.press("Tab")
    assert again.inner_text("#named") == "2 clusters named, 2 images marked"
    # What has a name is found by it.
    again.fill("#search", "round")
    again.wait_for_selector("#view h2 >> text='1 cluster'")


def test_names_of_two_tabs_are_all_kept(report, opened):
    one = opened(report)
    two = opened(report, context=one.context)
    for page, cluster, name in ((two, 2, "two"), (one, 3, "three"), (two, 4, "four")):
        page.goto(f"file://{report}#cluster/{cluster}")
        page.fill("#view .name >> nth=0", name)
        page.keyboard.press("Tab")
    two.goto(f"file://{report}#cluster/2")
    two.click("#view .thumb >> nth=0")
    two.check("#mark")
    one.wait_for_selector("#named >> text='3 clusters named, 1 image marked'")
    assert two.inner_text("#named") == "3 clusters named, 1 image marked"


def test_the_report_is_drawn_anew_with_names(finished, opened, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    (tmp_path / "names.csv").write_text("head,cluster,source,name\n0,3,,three\n1,3,,drei\n,,17,\n")
    before = np.load(workdir / "labels.npz")
    (done,) = run_modules([["sela_tf.report", f"--workdir={workdir}", f"--names={tmp_path / 'names.csv'}"]])
    assert done.returncode == 0, done.stderr
    assert "Clusters that have names: 2; single images that are marked or named: 1." in done.stdout
    after = np.load(workdir / "labels.npz")
    assert after["cluster_names"][:, 3].tolist() == ["three", "drei"]
    assert (after["cluster_names"] != "").sum() == 2
    assert all((before[name] == after[name]).all() for name in before.files)
    page = opened(workdir / "report.html")
    assert page.inner_text("#named") == "2 clusters named, 1 image marked"
    page.goto(f"file://{workdir}/report.html#cluster/3")
    assert page.input_value("#view .name >> nth=0") == "three"


def test_what_was_typed_since_the_download_outlives_another_report(finished, opened, tmp_path):
    workdir = tmp_path / "run"
    shutil.copytree(finished[0], workdir)
    page = opened(workdir / "report.html")
    page.goto(f"file://{workdir}/report.html#cluster/3")
    page.fill("#view .name >> nth=0", "three")
    page.keyboard.press("Tab")
    page.click("#view .thumb >> nth=0")
    page.check("#mark")
    saved = _saved(page, tmp_path)
    # Somebody edits the file, and somebody goes on typing.
    saved.write_text(saved.read_text().replace("three", "drei"))
    page.goto(f"file://{workdir}/report.html#cluster/5")
    page.fill("#view .name >> nth=0", "five")
    page.keyboard.press("Tab")
    for command in ([f"--names={saved}"], []):
        (done,) = run_modules([["sela_tf.report", f"--workdir={workdir}", *command]])
        assert done.returncode == 0, done.stderr
        again = opened(workdir / "report.html", context=page.context)
        assert again.inner_text("#named") == "2 clusters named, 1 image marked"
        for cluster, name in ((3, "drei"), (5, "five")):
            again.goto(f"file://{workdir}/report.html#cluster/{cluster}")
            assert again.input_value("#view .name >> nth=0") == name
    # Who has typed nothing sees what the run has.
    other = opened(workdir / "report.html")
    assert other.inner_text("#named") == "1 cluster named, 1 image marked"


def test_groups_are_those_of_the_tree_and_share_a_name(report, opened, tmp_path):
    page = opened(report)
    page.click("nav >> text=Groups")
    page.fill("#groups", "4")
    page.keyboard.press("Enter")
    assert page.locator("main .row").count() == 4
    groups = []
    for row in page.locator("main .row").all():
        row.locator("summary").click()
        groups.append(
            sorted(
                int(link.removeprefix("#cluster/")) for link in row.locator("details a").evaluate_all("all => all.map(a => a.hash)")
            )
        )
    assert sorted(k for group in groups for k in group) == list(range(16))
    page.locator("main .row").first.locator(".name").fill("large")
    page.keyboard.press("Tab")
    found = read_names(_saved(page, tmp_path), num_heads=2, num_clusters=16, setting="names")
    assert found.clusters == {(0, k): "large" for k in groups[0]}


@pytest.mark.parametrize(
    ("sort", "words", "sign"), [("confidence", r"margin (-?[\d.]+)", -1), ("entropy", r"entropy ([\d.]+)", 1), ("size", r"(\d+) training", -1),
                               ("disagreement", r"disagreement ([\d.]+)", -1), ("unsure", r"margin (-?[\d.]+)", 1)],
)  # fmt: skip
def test_clusters_are_sorted_by_what_stands_beside_them(sort, words, sign, report, opened):
    page = opened(report)
    page.click("nav >> text=Clusters")
    page.select_option("#sort", sort)
    facts = page.locator("main .row .facts").all_text_contents()
    values = [sign * float(re.search(words, each)[1]) for each in facts]
    assert len(values) == 16
    assert values == sorted(values)


def test_vectors_are_rows_with_neighbours(opened, tmp_path):
    write_page(tmp_path / "page.html", page_content(shown_images()._replace(thumbnails=None)))
    page = opened(tmp_path / "page.html")
    assert "Vectors have no pictures" in page.inner_text("#overview")
    page.goto(f"file://{tmp_path}/page.html#cluster/2")
    first = page.locator("#view .thumb.text").first
    first.wait_for()
    source = first.inner_text()
    first.click()
    assert page.inner_text("#view h1") == source
    page.locator("#view .thumb.text").nth(3).wait_for()


def test_what_no_source_tells_apart_cannot_be_marked(opened, tmp_path):
    write_page(tmp_path / "page.html", page_content(shown_images()))
    page = opened(tmp_path / "page.html")
    for query, boxes in (("4.png", 0), ("5.png", 1)):
        page.fill("#search", query)
        page.wait_for_selector(f"#view h1:has-text('Search: {query}')")
        thumb = page.locator(f"#view .thumb[title^='{query}']").first
        thumb.focus()
        page.keyboard.press("x")
        assert page.inner_text("#named").endswith("1 image marked") == (boxes == 0)
        thumb.click()
        assert page.locator("#mark").count() == boxes


def test_search_by_file_class_and_cluster(report, opened, tmp_path):
    write_page(tmp_path / "page.html", page_content(shown_images()))
    classes = opened(tmp_path / "page.html")
    classes.fill("#search", "dog")
    classes.wait_for_selector("#view h2:has-text('images')")
    assert int(re.search(r"(\d+) images", classes.inner_text("#view"))[1]) == int((shown_images().classes == 1).sum())
    page = opened(report)
    for query, heading in (("cluster 11", "1 cluster"), ("1234", "1 image")):
        page.fill("#search", query)
        page.wait_for_selector(f"#view h2:has-text('{heading}')")
    page.locator("#view .strip .thumb").first.wait_for()


def test_it_is_used_by_keyboard_alone(report, opened, tmp_path):
    page = opened(report)
    page.keyboard.press("/")
    page.keyboard.type("cluster 6")
    page.wait_for_selector("#view h2 >> text='1 cluster'")
    page.keyboard.press("Tab")  # from the search field on: head, (download,) link, name, first image
    for _ in range(6):
        if page.evaluate("document.activeElement.className") == "name":
            break
        page.keyboard.press("Tab")
    page.keyboard.type("six")
    page.keyboard.press("Tab")
    page.locator("#view .strip .thumb").nth(3).wait_for()
    while page.evaluate("!document.activeElement.dataset.image"):
        page.keyboard.press("Tab")
    page.keyboard.press("x")
    assert page.locator(".thumb.marked").count() == 1
    assert page.inner_text("#named") == "1 cluster named, 1 image marked"
    page.keyboard.press("Enter")
    page.wait_for_selector("#mark:checked")
    found = read_names(_saved(page, tmp_path), num_heads=2, num_clusters=16, setting="names")
    assert found.clusters == {(0, 6): "six"}
    assert list(found.images.values()) == [""]


def test_what_to_look_at_first(report, opened):
    page = opened(report)
    page.click("nav >> text=Look first")
    assert page.locator("main .row").count() > 50
    page.select_option("#reason", "low_margin")
    reasons = set(page.locator("main .row .reason").all_text_contents())
    assert reasons
    assert all(reason.startswith("between two clusters") for reason in reasons)


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("cluster/1.5", "There is no cluster 1.5."),
        ("cluster/-1", "There is no cluster -1."),
        ("image/1.5", "There is no image 1.5."),
        ("image/abc", "There is no image NaN."),
        ("search/%E0", "Search: %E0"),
    ],
)
def test_an_address_that_names_nothing_is_told(report, opened, address, shown):
    page = opened(pathlib.Path(f"{report}#{address}"))
    assert page.inner_text("#view > :first-child") == shown


@pytest.mark.parametrize("address", ["nonsense", "constructor"])
def test_another_address_shows_the_overview(report, opened, address):
    page = opened(pathlib.Path(f"{report}#{address}"))
    assert page.is_visible("#overview")
    assert not page.is_visible("#view")


def test_phone_needs_no_sideways_scrolling(report, opened):
    page = opened(report, width=390)
    for view in ("overview", "clusters", "cluster/3", "groups", "look", "image/3"):
        page.goto(f"file://{report}#{view}")
        page.wait_for_timeout(100)
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth"), view


def test_names_of_files_and_classes_run_nothing(opened, tmp_path):
    write_page(tmp_path / "page.html", page_content(shown_images()))
    page = opened(tmp_path / "page.html")
    for view in ("overview", "clusters", "groups", "look", "image/0", "cluster/3"):
        page.goto(f"file://{tmp_path}/page.html#{view}")
        page.wait_for_timeout(50)
    page.fill("#search", "onerror")
    page.wait_for_selector("#view h2")
    assert page.title() == EVIL
    assert page.locator("img").count() == 0
