"""The console in a real browser, served by ``owl serve`` with a real controller and Redis."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from selenium.webdriver.common.keys import Keys as Press

from owl_celery.embedded import EmbeddedRedis, free_port
from owl_celery.keys import Keys
from owl_celery.testing import wait_until
from owl_celery.types import Outcome, TryState
from owl_celery.wire import Heartbeat, Started, encode_event
from tests.browser import Browser, open_browser

# Servers and a browser start here, which takes a busy machine long.
pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(400)]

FLEET = {"Tesla K80": 0.8, "Tesla P100-PCIE-16GB": 0.2, "Tesla V100-SXM2-16GB": 0.1}
"""GPU models, and seconds that the task type ``train`` takes there; two queues of each."""
HOSTILE = "<img src=x onerror='window.hacked=1'></script><script>window.hacked=1</script>\u202e" + (
    "длинное имя " * 20
)
GIB = 2**30


class Site:
    """An application whose workers are played by the test, with a real server beside them.

    Parameters
    ----------
    redis_url
        Broker and state.
    folder
        For the application's module and its database.
    namespace
        Name of the application; each has its own on the Redis of the tests.

    """

    def __init__(self, redis_url: str, folder: Path, namespace: str) -> None:
        self.client = Redis.from_url(redis_url, decode_responses=True)
        self.keys = Keys(namespace)
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/"
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self._number = 0
        (folder / f"{namespace}.py").write_text(
            "from celery import Celery\n"
            "from owl_celery import install\n"
            f"app = install(Celery({namespace!r}, broker={redis_url!r}),"
            f" continuous_learning_storage_path={str(folder / namespace)!r})\n"
        )

    def start(self, **environment: str) -> None:
        """Start ``owl serve``, and wait until it serves the page."""
        self._process = subprocess.Popen(
            [sys.executable, "-m", "celery", "-A", self.keys.namespace, "owl", "serve"],
            cwd=self._folder,
            env={
                **os.environ,
                "PYTHONPATH": f"{self._folder}:{os.environ.get('PYTHONPATH', '')}",
                "OWL_API_PORT": str(self.port),
                "OWL_ENABLE_METRICS": "false",
                "OWL_LEASE_SECONDS": "1",
                **environment,
            },
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_until(self._answers, "the page", 150.0)

    def stop(self) -> None:
        """Stop the server; without effect when it does not run."""
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            try:
                self._process.wait(timeout=20.0)
            finally:
                self._process.kill()
                self._process.wait()
                self._process = None

    def beat(self, queue: str, gpu_model: str, **fields: Any) -> None:
        """Have a worker live for as long as the test runs."""
        node = f"worker-of-{queue}"
        beat = Heartbeat(
            node=node,
            queue=queue,
            gpu_model=gpu_model,
            utilization_ratio=0.87,
            memory_total_bytes=16 * GIB,
            memory_free_bytes=12 * GIB,
            temperature_celsius=61.0,
            power_watts=143.0,
            **fields,
        )
        self.client.sadd(self.keys.nodes, node)
        self.client.set(self.keys.heartbeat(node), beat.encode(), ex=3600)

    def finish(self, task_type: str, gpu_model: str, **fields: Any) -> str:
        """Have a task finish there; returns its id."""
        self._number += 1
        task_id = f"task-{self._number}"
        seconds = FLEET.get(gpu_model, 0.3)
        values: dict[str, Any] = {
            "task_id": task_id,
            "decision_id": f"d{self._number}",
            "attempt": 0,
            "task_type": task_type,
            "size": 1.0,
            "queue": f"gpu.{gpu_model.split()[1][:4].lower()}.0",
            "worker_id": "worker",
            "gpu_model": gpu_model,
            "state": TryState.SUCCESS,
            "service_seconds": seconds * (1.0 + 0.01 * (self._number % 7)),
            "finished_at": time.time(),
            "wait_seconds": 0.05,
            "predicted_seconds": seconds,
            "algorithm": "q_learning",
        }
        self.client.xadd(self.keys.events, {"e": encode_event(Outcome(**values | fields))})
        return task_id

    def begin(self, task_type: str, queue: str, gpu_model: str) -> None:
        """Have a task run there from now on."""
        started = Started(
            "running", "r", 0, task_type, queue, f"worker-of-{queue}", gpu_model, 60.0
        )
        self.beat(queue, gpu_model, active=("running",))
        self.client.xadd(self.keys.events, {"e": encode_event(started)})

    def close(self) -> None:
        """Stop the server and leave nothing in Redis."""
        self.stop()
        for key in self.client.scan_iter(f"owl:{self.keys.namespace}:*", count=5000):
            self.client.delete(key)
        self.client.close()

    def _answers(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, "owl serve ended"
        return _status_of(self.url) == 200


def _status_of(url: str) -> int:
    """Status of an answer; 0 when there is none."""
    try:
        return httpx.get(url, timeout=5.0).status_code
    except httpx.TransportError:
        return 0


@contextmanager
def site_of(redis_url: str, folder: Path, namespace: str) -> Iterator[Site]:
    site = Site(redis_url, folder, namespace)
    try:
        yield site
    finally:
        site.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def site(redis_server: EmbeddedRedis, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Six queues that have served 60 tasks of two types; one of them works on a third."""
    with site_of(redis_server.url, tmp_path_factory.mktemp("site"), "console") as found:
        for gpu_model in FLEET:
            for number in range(2):
                found.beat(f"gpu.{gpu_model.split()[1][:4].lower()}.{number}", gpu_model)
        for _ in range(10):
            for gpu_model in FLEET:
                found.finish("train", gpu_model)
                found.finish("infer", gpu_model, algorithm="celery", predicted_seconds=None)
        found.begin("a long one", "gpu.k80.1", "Tesla K80")
        found.start()
        yield found


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Browser]:
    """The console, open and working; at its end it has said and fetched nothing untoward."""
    browser.open(site.url)
    browser.wait_for_text("#status", "Working")
    yield browser
    assert browser.errors() == []
    assert [url for url in browser.requests() if not url.startswith(site.url)] == []
    assert browser.script("return window.hacked ?? null") is None


def test_shows_queues_what_runs_and_how_the_gpus_do(page: Browser) -> None:
    page.wait_for_text("#fleet", "a long one")
    fleet = page.text("#fleet")
    for said in (*FLEET, "gpu.k80.0", "gpu.v100.1", "87\u00a0%", "4.0 / 16\u00a0GiB", "61\u00a0°C"):
        assert said in fleet
    assert len(page.all("#fleet th.queue")) == 6
    page.wait_for_text("#figures", "6 / 6")


def test_a_decision_arrives_with_its_reason_and_without_a_reload(page: Browser, site: Site) -> None:
    page.wait_for_text("#decisions-list", "train")
    page.script("window.sameDocument = true")
    site.finish("just now", "Tesla V100-SXM2-16GB", state=TryState.FAILURE, error="ValueError")
    page.wait_for_text("#decisions-list li:first-child", "just now")
    newest = page.text("#decisions-list li:first-child")
    assert "→ gpu.v100.0" in newest
    assert "failed: ValueError" in newest
    assert len(page.text("#decisions-list li:first-child .why")) > 20
    assert page.script("return window.sameDocument")


def test_the_list_can_be_paused_to_be_read(page: Browser, site: Site) -> None:
    page.wait_for_text("#decisions-list", "train")
    page.one("#decisions-pause").click()
    site.finish("held back", "Tesla K80")
    page.wait_for_text("#decisions-sum", "paused, 1 new")
    assert "held back" not in page.text("#decisions-list")
    page.one("#decisions-pause").click()
    page.wait_for_text("#decisions-list", "held back")


def test_shows_what_is_learned_as_numbers_and_as_curve(page: Browser) -> None:
    page.wait_for_text("#matrix-body", "train")
    columns = [head.text for head in page.all("#matrix-body thead th")]
    assert columns == ["Task type", "V100-SXM2-16GB", "P100-PCIE-16GB", "K80"]
    row = next(row for row in page.all("#matrix-body tbody tr") if row.text.startswith("train"))
    times = [float(cell.text.split()[0]) for cell in row.find_elements("css selector", "td")]
    assert times == pytest.approx([103, 206, 824], rel=0.05)
    page.script("document.querySelector('input[value=samples]').click()")
    assert "train\n10 10 10" in page.one("#matrix-body").text
    page.wait_for_text("#curve", "q_learning")
    picture = page.one(".chart[aria-label^='Mean response time']")
    assert "q_learning: from" in str(picture.get_attribute("aria-label"))
    assert page.all(".chart .tone-celery")
    page.one("#curve summary").click()
    page.wait_for_text("#curve table", "Celery's own route")


def test_a_hostile_name_is_only_text(page: Browser, site: Site) -> None:
    for gpu_model in FLEET:
        site.finish(HOSTILE[:255], gpu_model, error="<b>no</b>", state=TryState.FAILURE)
    page.wait_for_text("#decisions-list", "<img src=x onerror=")
    page.wait_for_text("#decisions-list", "<b>no</b>")
    page.wait_for_text("#matrix-body", "<img src=x onerror=")
    assert not page.all("main img, main script, #decisions b")
    page.resize(360, 740)
    assert page.script("return document.documentElement.scrollWidth") == 360


@pytest.mark.parametrize("dark", [False, True])
def test_every_text_can_be_read_in_light_and_dark(
    page: Browser, browser: Browser, site: Site, dark: bool
) -> None:
    browser.open(site.url, dark=dark)
    browser.wait_for_text("#matrix-body", "train")
    browser.wait_for_text("#decisions-list", "train")
    browser.wait_for_text("#curve", "q_learning")
    background = browser.script("return getComputedStyle(document.body).backgroundColor")
    assert background == ("rgb(14, 17, 22)" if dark else "rgb(244, 245, 247)")
    contrasts = browser.contrasts()
    assert len(contrasts) > 100
    assert [found for found in contrasts if found[0] < 4.5] == []


def test_fits_a_phone(page: Browser) -> None:
    page.wait_for_text("#matrix-body", "train")
    page.resize(360, 740)
    for selector in ("#status", "#fleet th.queue", "#decisions-pause", "#curve .chart"):
        box = page.one(selector).rect
        assert 0 <= box["x"] <= box["x"] + box["width"] <= 360
    assert page.script("return document.documentElement.scrollWidth") == 360


def test_works_by_keyboard(page: Browser) -> None:
    page.wait_for_text("#curve", "q_learning")
    page.press(Press.TAB)
    assert page.focused().text == "Skip to the queues"
    page.press(Press.ENTER)
    assert page.focused().get_attribute("id") == "main"
    page.press(Press.TAB)
    assert page.focused().get_attribute("id") == "fleet-find"
    assert page.script("return getComputedStyle(document.activeElement).outlineStyle") == "solid"
    page.press(*"v100")
    page.wait_for(lambda: len(page.all("#fleet th.queue")) == 2, "the queues that match")
    page.press(Press.TAB)
    assert page.focused().get_attribute("id") == "decisions-pause"
    page.press(Press.TAB, Press.TAB, Press.ARROW_RIGHT)
    assert page.focused().get_attribute("value") == "ratio"
    page.wait_for(lambda: "best" in page.text("#matrix-body td"), "the other view")
    for _ in range(4):
        page.press(Press.TAB)
        if page.focused().get_attribute("class") == "plots":
            break
    page.press(Press.HOME)
    assert page.all(".chart .cross[visibility=visible]")
    assert "task" in page.text("#curve output")


def test_landmarks_and_labels_are_there(page: Browser) -> None:
    page.wait_for_text("#matrix-body", "train")
    for selector in ("header", "main", "nav[aria-label]", "footer", "#status[role=status]"):
        assert len(page.all(selector)) == 1
    unnamed = page.script(
        "return [...document.querySelectorAll('section, input, button, [tabindex=\"0\"]')]"
        ".filter((node) => !node.ariaLabel && !node.textContent.trim() && !node.labels?.length"
        " && !node.getAttribute('aria-labelledby')).map((node) => node.outerHTML)"
    )
    assert unnamed == []
    for head in page.all("#fleet thead th, #matrix-body thead th"):
        assert head.get_attribute("scope") == "col"


def test_is_live_again_when_its_reader_comes_back(page: Browser, site: Site) -> None:
    for _ in range(7):  # One more than the connections that a browser opens to one server.
        page.driver.get("about:blank")
        page.driver.back()
    site.finish("meanwhile", "Tesla K80")
    page.wait_for_text("#decisions-list li:first-child", "meanwhile")


def test_a_thousand_queues_stay_light(page: Browser, site: Site) -> None:
    many = [f"gpu.many.{number}" for number in range(1000)]
    for number, queue in enumerate(many):
        site.beat(queue, f"Model {number % 3}")
    try:
        page.wait_for_text("#fleet-sum", "1,006 queues")
        assert page.script("return document.querySelectorAll('*').length") < 2_500
        assert len(page.all(".map")) >= 4
        page.one("#fleet-find").send_keys("many.77")
        page.wait_for(lambda: len(page.all("#fleet th.queue")) == 11, "the queues that match")
        page.one("#fleet-find").clear()
    finally:
        site.client.delete(*(site.keys.heartbeat(f"worker-of-{queue}") for queue in many))


def test_asks_for_the_token_says_what_to_do_and_survives_a_restart(
    browser: Browser, redis_server: EmbeddedRedis, tmp_path: Path
) -> None:
    secret = "a-long-enough-token-1234"
    with site_of(redis_server.url, tmp_path, "quiet") as quiet:
        # Held by another, which never says a word: no controller is at work.
        quiet.client.set(quiet.keys.lease, "1:other")
        quiet.start(OWL_API_TOKEN=secret)
        browser.open(quiet.url)
        answer(browser, "wrong")
        browser.wait_for_text("#token-error", "refused")
        answer(browser, secret)
        browser.wait_for_text("#fleet", "No queue yet. Start workers")
        browser.wait_for_text("#decisions-list", "No task has finished yet")
        browser.wait_for_text("#matrix-body", "Nothing is learned yet")
        browser.wait_for_text("#notices", "ontroller")
        assert "Working" not in browser.text("#status")

        browser.script("window.sameDocument = true")
        quiet.stop()
        browser.wait_for_text("#status", "No connection, trying again; what you see is from")
        assert "stale" in str(browser.one("body").get_attribute("class"))
        quiet.client.delete(quiet.keys.lease)
        quiet.beat("gpu.k80.0", "Tesla K80")
        quiet.start(OWL_API_TOKEN=secret)
        browser.wait_for_text("#status", "Working")
        browser.wait_for_text("#fleet", "gpu.k80.0")
        quiet.finish("after the restart", "Tesla K80")
        browser.wait_for_text("#decisions-list li:first-child", "after the restart")
        assert browser.text("#notices") == ""
        assert browser.script("return window.sameDocument")

        browser.driver.refresh()
        browser.wait_for_text("#fleet", "gpu.k80.0")
        assert secret not in browser.driver.current_url
        assert browser.script("return [localStorage.length, sessionStorage.length]") == [0, 1]
        browser.one("#forget-token").click()
        browser.wait_for(lambda: browser.one("#token").is_displayed(), "the question once more")


def answer(browser: Browser, token: str) -> None:
    """Give the token that the page asks for."""
    browser.wait_for(lambda: browser.one("#token").is_displayed(), "the question")
    browser.press(*token, Press.ENTER)
