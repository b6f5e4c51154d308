"""Take the pictures of the console in docs/figures from a run of the demo.

``python -m benchmarks.console_figures`` starts ``owl demo --keep``, waits until both arms are done
and the third has gone on for a while, and then looks at the page as a reader would.
"""

from __future__ import annotations

import argparse
import base64
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.browser import Browser, open_browser

ADDRESS: Final = re.compile(r"Watch it at (http://\S+)")


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture.

    Parameters
    ----------
    width, height
        Size of the window; a height of 0 takes the whole page.
    scale
        Pixels of the picture for one of the page.

    """

    name: str
    width: int
    height: int
    scale: float = 1
    dark: bool = False


PICTURES: Final = (
    Picture("console-light", 1440, 0),
    Picture("console-dark", 1440, 0, dark=True),
    Picture("console-phone", 360, 780, scale=2),
)


@contextmanager
def demo(arguments: list[str]) -> Iterator[str]:
    """Address of the console of a demo that has compared its arms, and goes on."""
    with tempfile.TemporaryDirectory(prefix="owl-figures-") as output:
        command = [sys.executable, "-m", "owl_celery", "demo", "--keep", "--output", output]
        process = subprocess.Popen([*command, *arguments], stdout=subprocess.PIPE, text=True)
        try:
            assert process.stdout is not None
            address = ""
            for line in process.stdout:
                print(line, end="", flush=True)
                found = ADDRESS.search(line)
                address = found[1] if found else address
                if "stays up" in line:
                    yield address
                    return
            raise SystemExit("The demo ended before there was something to see.")
        finally:
            process.terminate()
            process.communicate()


def take(
    browser: Browser, address: str, picture: Picture, folder: Path, look_seconds: float
) -> Path:
    """Take one picture of the page, some time after it was opened."""
    browser.open(address, picture.width, picture.height or 1000, picture.dark)
    browser.wait_for_text("#curve", "Mean response time")
    browser.wait_for_text("#matrix-body", "replay")
    browser.script("document.querySelector('input[name=curve-span][value=live]').click()")
    # The lines beside the figures begin when the page is opened.
    time.sleep(look_seconds)
    height = picture.height or int(browser.script("return document.documentElement.scrollHeight"))
    browser.resize(picture.width, height, picture.scale)
    time.sleep(1.5)
    png = browser.command("Page.captureScreenshot", format="png")["data"]
    path = folder / f"{picture.name}.png"
    path.write_bytes(base64.b64decode(png))
    return path


def main() -> None:
    """Take all pictures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, default=Path("docs/figures"))
    parser.add_argument("--after", type=float, default=60.0, help="seconds to go on before")
    parser.add_argument("--look", type=float, default=45.0, help="seconds to look at each")
    options, arguments = parser.parse_known_args()
    with demo(arguments) as address, open_browser() as browser:
        time.sleep(options.after)
        for picture in PICTURES:
            print(take(browser, address, picture, options.folder, options.look))


if __name__ == "__main__":
    main()
