"""A look at files of labels in embedding-atlas, by a browser: the page has to show the points, and the pictures of one and of its neighbours.

    python tests/atlas/look.py CHROMIUM FILE.parquet …

It runs in the environment of tests/locks/atlas.lock, and writes two screenshots beside each file.
"""

from __future__ import annotations

import base64
import io
import pathlib
import re
import subprocess
import sys
import time
import urllib.error
import urllib.request

import numpy as np
import pyarrow.parquet
from PIL import Image
from playwright.sync_api import Page, sync_playwright

COLUMNS = ["--vector", "embedding", "--neighbors", "neighbours", "--image", "picture"]
PORT, MINUTES = 5081, 10
_BARS = 60
"""Pixels at the top and at the bottom of the points, where there are buttons and words."""

# A graphics card in software. It has no half floats, which the page's shaders want: they are given single ones.
FLAGS = ["--no-sandbox", "--ignore-gpu-blocklist", "--enable-unsafe-webgpu", "--use-webgpu-adapter=swiftshader", "--enable-features=Vulkan",
         "--use-vulkan=swiftshader", "--use-gl=angle", "--use-angle=swiftshader", "--enable-unsafe-swiftshader"]  # fmt: skip
SINGLE_FLOATS = """
const {has} = GPUSupportedFeatures.prototype, {requestDevice} = GPUAdapter.prototype, {createShaderModule, createBuffer} = GPUDevice.prototype;
GPUSupportedFeatures.prototype.has = function (name) { return name === "shader-f16" || has.call(this, name); };
GPUAdapter.prototype.requestDevice = function (wanted = {}) {
  return requestDevice.call(this, {...wanted, requiredFeatures: [...(wanted.requiredFeatures ?? [])].filter(name => name !== "shader-f16")});
};
GPUDevice.prototype.createShaderModule = function (wanted) {
  return createShaderModule.call(this, {...wanted, code: wanted.code.replace(/enable f16;/g, "").replace(/\\bf16\\b/g, "f32")});
};
GPUDevice.prototype.createBuffer = function (wanted) {
  const grows = wanted.usage & GPUBufferUsage.STORAGE && !wanted.mappedAtCreation;
  return createBuffer.call(this, grows ? {...wanted, size: 2 * wanted.size} : wanted);
};
"""


def main(chromium: str, files: list[pathlib.Path]) -> None:
    for file in files:
        command = [
            pathlib.Path(sys.executable).with_name("embedding-atlas"),
            file,
            *COLUMNS,
            "--host=127.0.0.1",
            f"--port={PORT}",
            "--no-auto-port",
        ]
        with subprocess.Popen(command) as process, sync_playwright() as playwright:
            try:
                wait_for(process)
                browser = playwright.chromium.launch(executable_path=chromium, args=FLAGS)
                page = browser.new_page(viewport={"width": 1200, "height": 800})
                page.add_init_script(SINGLE_FLOATS)
                page.goto(f"http://127.0.0.1:{PORT}/")
                look(page, file)
                browser.close()
            finally:
                process.terminate()
        print(f"{file}: points, pictures and neighbours are shown: {file.with_suffix('.png')}", flush=True)


def wait_for(process: subprocess.Popen) -> None:
    """Waits until the page is served, which is after the projection."""
    for _ in range(60 * MINUTES):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{PORT}/", timeout=5).close()
            return
        except (urllib.error.URLError, TimeoutError):
            if process.poll() is not None:
                sys.exit(f"embedding-atlas ended with status {process.returncode}")
            time.sleep(1)
    sys.exit(f"embedding-atlas served nothing within {MINUTES} minutes")


def look(page: Page, file: pathlib.Path) -> None:
    """Waits until points are drawn, selects one, and compares the pictures of it and of its neighbours with those of the file."""
    table = pyarrow.parquet.read_table(file)
    page.get_by_text(f"{table.num_rows:,} / {table.num_rows:,} points").wait_for(timeout=60_000)
    canvas = page.locator("canvas").first
    for _ in range(60):
        time.sleep(1)
        drawn = Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")
        red, _, blue = np.asarray(drawn, int)[_BARS:-_BARS].transpose(2, 0, 1)
        places = np.argwhere(blue - red > 60)
        if len(places) > 50:
            break
    else:
        page.screenshot(path=file.with_suffix(".png"))
        sys.exit(f"{file}: no points are drawn")
    area = canvas.bounding_box()
    for top, left in np.random.default_rng(0).permutation(places)[:10]:
        page.mouse.click(area["x"] + int(left), area["y"] + _BARS + int(top))
        page.wait_for_timeout(2000)
        if page.get_by_text("Nearest Neighbors").count():
            break
    else:
        page.screenshot(path=file.with_suffix(".png"))
        sys.exit(f"{file}: no point can be selected")
    pictures = [struct["bytes"] for struct in table["picture"].to_pylist()]
    selected = page.evaluate(PICTURES, [area["x"], area["x"] + area["width"], area["y"] + area["height"]])
    page.screenshot(path=file.with_suffix(".png"))
    page.get_by_text("Nearest Neighbors").click()
    row = int(re.search(r"\d+", page.get_by_text("Neighbors of #").inner_text())[0])
    page.wait_for_timeout(4000)
    page.screenshot(path=file.with_name(f"{file.stem}_neighbours.png"))
    # The list of the nearest images opens at the left of the page.
    nearest = page.evaluate(PICTURES, [0, 430, 10**9])
    expected = [pictures[i] for i in table["neighbours"][row].as_py()["ids"]]
    if list(map(content, selected)) != [pictures[row]] or list(map(content, nearest)) != expected:
        sys.exit(
            f"{file}: {len(selected)} and {len(nearest)} pictures are shown for row {row} and its neighbours, or others than theirs"
        )


def content(address: str) -> bytes:
    """Returns the file that a data URL holds."""
    return base64.b64decode(address.partition(",")[2])


# The pictures that are shown between two columns of the page and above a row of it.
PICTURES = """([left, right, bottom]) => [...document.images].filter(image => {
  const box = image.getBoundingClientRect();
  return image.src.startsWith("data:image/") && image.naturalWidth && left <= box.left && box.right <= right && box.top < bottom;
}).map(image => image.src)"""

if __name__ == "__main__":
    main(sys.argv[1], [pathlib.Path(name).resolve() for name in sys.argv[2:]])
