"""Pictures of a run's page in Chromium: `python -m tools.screenshots RUN/report.html DIRECTORY`, for `make screenshots`."""

import pathlib
import sys

from playwright.sync_api import sync_playwright

CHROMIUM = "/usr/bin/chromium"
VIEWS = ("overview", "clusters", "cluster/0", "groups", "look", "image/0", "search/1")
WIDTHS = {"desk": 1280, "phone": 390}


def main(page: pathlib.Path, directory: pathlib.Path) -> None:
    """Writes a picture of every view at every width."""
    directory.mkdir(parents=True, exist_ok=True)
    with sync_playwright() as playwright:
        # Chromium refuses its sandbox to root, and the page is our own.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        for name, width in WIDTHS.items():
            shown = browser.new_page(viewport={"width": width, "height": 900})
            for view in VIEWS:
                shown.goto(f"file://{page.resolve()}#{view}")
                shown.wait_for_selector("html[data-ready]")
                # The strips in sight are filled.
                shown.wait_for_timeout(500)
                shown.screenshot(path=str(directory / f"{view.replace('/', '_')}_{name}.png"))
        browser.close()
    print(f"{len(VIEWS) * len(WIDTHS)} pictures in {directory}")


if __name__ == "__main__":
    main(*map(pathlib.Path, sys.argv[1:]))
