"""Draw the rows of the dashboard with Grafana's own components, in a browser."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from io import BytesIO
from pathlib import Path
from typing import Final

from PIL import Image
from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from grafana.source.panels import Json

FOLDER: Final = Path(__file__).parent
IMAGES: Final = FOLDER / "node_modules" / "@grafana" / "ui" / "dist" / "public" / "img"
DRAW_SECONDS: Final = 60.0
SIZE: Final = (1480, 1400)
FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
    "--force-device-scale-factor=1",
    # Icons are files beside the page.
    "--allow-file-access-from-files",
    f"--window-size={SIZE[0]},{SIZE[1]}",
)


def build() -> None:
    """Bundle the page; the first time npm fetches half a gigabyte of packages."""
    if not (FOLDER / "node_modules").exists():
        npm("install", "--no-package-lock", "--no-audit", "--no-fund")
    npm("run", "build")


def npm(*arguments: str) -> None:
    """Run npm in the folder of the page."""
    program = shutil.which("npm")
    if program is None:
        raise SystemExit("There is no npm: install Node.js 20 or newer.")
    subprocess.run([program, *arguments], cwd=FOLDER, check=True)


def draw(results: Json, folder: Path) -> list[Path]:
    """Draw each row into ``dashboard-<slug>.png``; where the pictures are."""
    folder.mkdir(parents=True, exist_ok=True)
    options = ChromeOptions()
    for flag in FLAGS:
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = Service(shutil.which("chromedriver"))
    with tempfile.TemporaryDirectory() as profile:
        page = Path(profile) / "page.html"
        page.write_text(html(results))
        (Path(profile) / "public" / "build").mkdir(parents=True)
        (Path(profile) / "public" / "build" / "img").symlink_to(IMAGES)
        options.add_argument(f"--user-data-dir={profile}/chromium")
        with Chrome(options, service) as browser:
            browser.get(page.as_uri())
            WebDriverWait(browser, DRAW_SECONDS).until(is_drawn)
            return [
                shoot(browser, row["slug"], folder / f"dashboard-{row['slug']}.png")
                for row in results["rows"]
            ]


def is_drawn(browser: Chrome) -> bool:
    """Whether all is on the page.

    Raises
    ------
    RuntimeError
        With what went wrong in the page.

    """
    for line in browser.get_log("browser"):  # type: ignore[no-untyped-call]
        if "Uncaught" in line["message"]:
            raise RuntimeError(line["message"])
    return bool(browser.execute_script("return window.drawn === true"))


def shoot(browser: Chrome, slug: str, path: Path) -> Path:
    """Keep the picture of one row; in 256 colours, which halves it."""
    png = browser.find_element(By.ID, slug).screenshot_as_png
    Image.open(BytesIO(png)).convert("RGB").quantize(256, dither=Image.Dither.NONE).save(
        path, optimize=True
    )
    return path


def html(results: Json) -> str:
    """The page around the rows; nothing in it is fetched."""
    data = json.dumps(results).replace("</", "<\\/")
    script = (FOLDER / "build" / "page.js").as_uri()
    style = (FOLDER / "build" / "page.css").as_uri()
    return (
        '<!doctype html><meta charset="utf-8">'
        f'<link rel="stylesheet" href="{style}"><body style="margin:0"><div id="rows"></div>'
        f'<script>window.results = {data}</script><script src="{script}"></script>'
    )
