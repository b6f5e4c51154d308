"""A headless Chromium for tests, and what a person can do in it."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar

from selenium.webdriver import Chrome
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

from tests.programs import find_program

Value = TypeVar("Value")

FLAGS: Final = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--hide-scrollbars",
)

# Contrast of every text on the page with what is behind it, by the formulas of WCAG 2.
CONTRAST: Final = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgba = (text) => {
  canvas.clearRect(0, 0, 1, 1);
  canvas.fillStyle = text;
  canvas.fillRect(0, 0, 1, 1);
  const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
  return [r, g, b, a / 255];
};
const over = (top, under) => top.slice(0, 3).map((c, i) => c * top[3] + under[i] * (1 - top[3]));
const behind = (node) => {
  if (!node) return [255, 255, 255];
  const color = rgba(getComputedStyle(node).backgroundColor);
  return color[3] === 1 ? color.slice(0, 3) : over(color, behind(node.parentElement));
};
const luminance = (rgb) => rgb
  .map((c) => c / 255)
  .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
  .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
const found = [];
const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const node = walker.currentNode.parentElement;
  if (!walker.currentNode.data.trim() || !node.checkVisibility()) continue;
  const style = getComputedStyle(node);
  if (style.clipPath !== "none" || node.closest(".unseen, script, noscript")) continue;
  const back = behind(node);
  const color = node.closest("svg") ? style.fill : style.color;
  const [a, b] = [luminance(over(rgba(color), back)), luminance(back)];
  const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  found.push([ratio, walker.currentNode.data.trim().slice(0, 40)]);
}
return found;
"""


class Browser:
    """One window of a headless Chromium.

    Parameters
    ----------
    driver
        What drives it.

    """

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver

    def open(self, url: str, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Show a page in a window of this size, with nothing kept of earlier pages."""
        self.resize(width, height)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self.driver.get("about:blank")
        self.errors()
        self.requests()
        self.driver.get(url)

    def resize(self, width: int, height: int, scale: float = 1) -> None:
        """Change the size of the window, down to that of a phone."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=False,
        )

    def command(self, name: str, **arguments: Any) -> Any:
        """Give a command of the Chrome DevTools protocol."""
        return self.driver.execute_cdp_cmd(name, arguments)

    def script(self, source: str) -> Any:
        """Run JavaScript and return what it returns."""
        return self.driver.execute_script(source)

    def all(self, selector: str) -> list[WebElement]:
        """Elements that a CSS selector finds."""
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def one(self, selector: str) -> WebElement:
        """The first element that a CSS selector finds."""
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """All text of an element, also what is scrolled out of view; empty without one."""
        text: str = self.script(
            f"return document.querySelector({json.dumps(selector)})?.textContent ?? ''"
        )
        return text

    def wait_for(self, condition: Callable[[], Value], what: str, seconds: float = 30.0) -> Value:
        """Call ``condition`` until it returns something true; twenty times a second.

        Each look takes time of the browser, which it needs to get there.
        """
        wait: Any = WebDriverWait(self.driver, seconds, poll_frequency=0.05)
        found: Value = wait.until(lambda _: condition(), what)
        return found

    def wait_for_text(self, selector: str, part: str) -> None:
        """Wait until an element has this in its text."""
        self.wait_for(lambda: part in self.text(selector), f"{part!r} in {selector}")

    def press(self, *keys: str) -> None:
        """Press keys one after the other."""
        ActionChains(self.driver).send_keys(*keys).perform()

    def focused(self) -> WebElement:
        """The element that has the focus."""
        return self.driver.switch_to.active_element

    def errors(self) -> list[str]:
        """What scripts and the content security policy complained of since the last call.

        Answers of a server that say no are none: a page may well have asked.
        """
        entries: list[dict[str, Any]] = self.driver.get_log("browser")  # type: ignore[no-untyped-call]
        return [entry["message"] for entry in entries if entry["source"] != "network"]

    def requests(self) -> list[str]:
        """Addresses that pages have asked for since the last call."""
        entries: list[dict[str, Any]] = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def contrasts(self) -> list[tuple[float, str]]:
        """Contrast of each visible text with what is behind it, the lowest first."""
        return sorted((ratio, text) for ratio, text in self.script(CONTRAST))


@contextmanager
def open_browser() -> Iterator[Browser]:
    """A Chromium with an empty profile, which is deleted with it."""
    # Selenium would otherwise look for another driver on the net.
    os.environ["SE_OFFLINE"] = "true"
    with tempfile.TemporaryDirectory(prefix="owl-browser-", ignore_cleanup_errors=True) as profile:
        options = Options()
        options.binary_location = find_program("chromium")
        for flag in (*FLAGS, f"--user-data-dir={profile}"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
        driver = Chrome(options=options, service=Service(find_program("chromedriver")))
        try:
            yield Browser(driver)
        finally:
            driver.quit()
