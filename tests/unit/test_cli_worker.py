"""``celery -A proj owl worker``: which workers it plans, and how it says no."""

from __future__ import annotations

import socket
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from celery import Celery
from click.testing import CliRunner

from owl_celery import install
from owl_celery.cli import worker as cli
from owl_celery.cli.worker import check_in_background, check_store, plan_workers
from owl_celery.errors import OwlError
from owl_celery.gpus import FakeGpus
from owl_celery.installation import installation_of, uninstall
from owl_celery.settings import Settings
from owl_celery.supervisor import WorkerPlan

HOST = socket.gethostname()


class Reader(FakeGpus):
    """Stands in for NVML."""

    problem = ""


@pytest.fixture(autouse=True)
def present(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three GPUs on this host."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(cli, "NvmlReader", lambda: Reader.of(["K80", "V100", "V100"], "a"))


def without_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "NvmlReader", lambda: SimpleNamespace(list_gpus=list, problem="none"))


def nodes(plans: list[WorkerPlan]) -> list[str]:
    return [plan.node.removesuffix(f"@{HOST}") for plan in plans]


def values(plans: list[WorkerPlan], name: str) -> list[str]:
    return [plan.environment[name] for plan in plans]


def test_every_gpu_gets_a_worker() -> None:
    plans = plan_workers(None, None, None)

    assert nodes(plans) == ["gpu0", "gpu1", "gpu2"]
    assert values(plans, "OWL_WORKER_QUEUE") == [f"gpu.{HOST}.{n}" for n in range(3)]
    assert values(plans, "CUDA_VISIBLE_DEVICES") == ["SIM-a-0", "SIM-a-1", "SIM-a-2"]
    assert len(set(values(plans, "OWL_WORKER_OWNER"))) == 1


@pytest.mark.parametrize("gpus", ["2,0", " SIM-a-0 , SIM-a-2,", "0,0,2"])
def test_gpus_can_be_chosen(gpus: str) -> None:
    assert nodes(plan_workers(None, None, gpus)) == ["gpu0", "gpu2"]


def test_cuda_visible_devices_is_respected() -> None:
    settings = Settings.load(cuda_visible_devices="SIM-a-1")

    assert nodes(plan_workers(None, None, None, settings)) == ["gpu1"]


@pytest.mark.parametrize("nothing", ["", "-1", "-1,0"])
def test_cuda_visible_devices_may_hide_all_gpus(
    monkeypatch: pytest.MonkeyPatch, nothing: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", nothing)

    assert nodes(plan_workers(None, 2, None)) == ["cpu0"]
    assert nodes(plan_workers("k80=1", None, None)) == ["gpu0"]
    assert nodes(plan_workers(None, None, "1")) == ["gpu1"]
    with pytest.raises(OwlError) as caught:
        plan_workers(None, None, None)
    assert str(caught.value) == (
        "CUDA_VISIBLE_DEVICES or --gpus hides all GPUs: unset it, name GPUs by --gpus, or try "
        '--simulate "k80=1,v100=1" for virtual GPUs or --cpu 2 for CPU processes.'
    )


def test_cuda_visible_devices_ends_at_minus_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,-1,2")

    assert nodes(plan_workers(None, None, None)) == ["gpu1"]


def test_cpu_processes_come_beside_the_gpus() -> None:
    plans = plan_workers(None, 4, "0")

    assert nodes(plans) == ["gpu0", "cpu0"]
    assert values(plans, "OWL_WORKER_QUEUE") == [f"gpu.{HOST}.0", f"cpu.{HOST}.0"]
    assert values(plans, "OWL_WORKER_CONCURRENCY") == ["1", "4"]


def test_cpu_processes_need_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpus(monkeypatch)

    assert nodes(plan_workers(None, 2, None)) == ["cpu0"]


def test_virtual_gpus_take_the_place_of_real_ones() -> None:
    plans = plan_workers("k80=1,v100=2", None, None)

    assert nodes(plans) == ["gpu0", "gpu1", "gpu2"]
    assert values(plans, "OWL_GPU_MODEL") == ["k80", "v100", "v100"]
    assert set(values(plans, "CUDA_VISIBLE_DEVICES")) == {""}


@pytest.mark.parametrize(
    ("simulate", "gpus", "sentence"),
    [
        ("k80", None, "Fleet part 'k80' is not MODEL=COUNT, such as k80=4."),
        ("k80=0", None, "Fleet part 'k80=0' is not MODEL=COUNT, such as k80=4."),
        (
            "h9000=1",
            None,
            "There is no virtual GPU 'h9000'; there are k80, p100, v100, t4, a10, a100, l4, l40s, "
            "h100, h200.",
        ),
        ("k80=1", "0", "Give --gpus or --simulate, not both: virtual GPUs have no index."),
        (
            None,
            "0,7",
            "GPU '7' of --gpus or CUDA_VISIBLE_DEVICES is not on this host; it has 0 (SIM-a-0), "
            "1 (SIM-a-1), 2 (SIM-a-2).",
        ),
    ],
)
def test_nonsense_is_a_sentence(simulate: str | None, gpus: str | None, sentence: str) -> None:
    with pytest.raises(OwlError) as caught:
        plan_workers(simulate, None, gpus)

    assert str(caught.value) == sentence


@click.group()
@click.option("-A", "--app")
@click.option("--no-color", is_flag=True)
@click.pass_context
def celery(ctx: click.Context, /, **_: Any) -> None:
    """Stand in for Celery's command."""
    ctx.obj = SimpleNamespace(app=install(Celery("proj", broker="redis://127.0.0.1:1/0")))


celery.add_command(cli.worker)


def test_no_gpu_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    without_gpus(monkeypatch)

    result = CliRunner().invoke(celery, ["-A", "proj", "worker"])

    assert result.exit_code == 1
    assert result.output == (
        "Error: No NVIDIA GPU was found (none): install the NVIDIA driver, or try "
        '--simulate "k80=1,v100=1" for virtual GPUs or --cpu 2 for CPU processes.\n'
    )


def test_no_application_says_what_to_do() -> None:
    result = CliRunner().invoke(celery, ["worker", "--simulate", "k80=1"])

    assert result.exit_code == 1
    assert result.output == (
        "Error: No application: start it as celery -A proj owl worker, where proj is your module.\n"
    )


def test_workers_get_the_options_of_this_command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []

    class Recorder:
        def __init__(self, plans: list[WorkerPlan], launch: Callable[[WorkerPlan], Any]) -> None:
            self.plans, self.launch = plans, launch

        def run(self) -> int:
            for plan in self.plans:
                self.launch(plan)
            return 0

    checked: list[Any] = []
    monkeypatch.setattr(cli, "run_beside", lambda *called: checked.append(called))
    monkeypatch.setattr(cli, "CeleryProcess", lambda *called: started.append(called))
    monkeypatch.setattr(cli, "Supervisor", Recorder)
    arguments = ["-A", "proj", "--no-color", "worker", "--simulate", "k80=1", "-l", "ERROR"]

    result = CliRunner().invoke(celery, [*arguments, "--", "-E", "--max-tasks-per-child", "9"])

    assert result.exit_code == 0, result.output
    [(command, environment)] = started
    assert " ".join(command) == (
        f"-A proj --no-color worker -l ERROR -E --max-tasks-per-child 9 -n gpu0@{HOST}"
    )
    assert environment["OWL_WORKER_QUEUE"] == f"gpu.{HOST}.0"
    [(check, _, namespace)] = checked
    assert (check, namespace) == (cli.check_store, "proj")


@pytest.mark.parametrize(
    ("settings", "is_checked"),
    [
        ({}, True),
        ({"embed_controller": False}, False),
        ({"enable_continuous_learning": False}, False),
    ],
)
def test_the_store_is_checked_where_a_worker_may_learn(
    monkeypatch: pytest.MonkeyPatch, settings: dict[str, Any], is_checked: bool
) -> None:
    checked: list[Any] = []
    monkeypatch.setattr(cli, "run_beside", lambda *called: checked.append(called))
    app = install(Celery("proj", broker="redis://127.0.0.1:1/0", set_as_current=False), **settings)
    parts = installation_of(app).parts
    assert parts is not None

    check_in_background(parts)
    uninstall(app)

    assert bool(checked) == is_checked


def test_a_store_that_cannot_be_checked_now_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(cli, "run_beside", refuse)
    app = install(Celery("proj", broker="redis://127.0.0.1:1/0", set_as_current=False))
    parts = installation_of(app).parts
    assert parts is not None

    check_in_background(parts)
    uninstall(app)


def test_a_store_that_works_is_not_mentioned(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    check_store(Settings.load(continuous_learning_storage_path=tmp_path), "proj")

    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("settings", "name", "cure"),
    [
        (
            {"continuous_learning_storage_path": "/proc/owl"},
            "Setting CONTINUOUS_LEARNING_STORAGE_PATH: cannot write /proc/owl",
            "name a folder that this user can write.",
        ),
        (
            {"database_url": "postgresql://u:secret@127.0.0.1:1/x"},
            "Setting DATABASE_URL: cannot reach Postgres at 127.0.0.1:1",
            "start it, or correct the address.",
        ),
        ({"database_url": "nonsense"}, "Setting DATABASE_URL is no database address", "write it"),
    ],
)
def test_a_store_that_does_not_work_is_one_line(
    capfd: pytest.CaptureFixture[str], settings: dict[str, Any], name: str, cure: str
) -> None:
    check_store(Settings.load(**settings), "proj")

    [line] = capfd.readouterr().err.splitlines()
    assert line.startswith(f"Warning: {name}")
    assert cure in line
    assert line.endswith(" Until then tasks go to the shortest queue, and nothing is learned.")
    assert "secret" not in line
