"""A worker with a GPU of its own: what it changes in Celery, and what it leaves alone."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from types import SimpleNamespace

import click
import pytest
from celery import Celery, Task
from click.testing import CliRunner, Result

from owl_celery.errors import WorkerError
from owl_celery.gpus import FakeGpus, Gpu, current_gpu
from owl_celery.lane import (
    acknowledge_late,
    add_worker_options,
    configure_lane,
    consume_own_queue_first,
    lane_of_cpu,
    lane_of_gpu,
    lane_of_option,
    prepare_worker,
)

HOST = socket.gethostname()
LATE = ("acks_late", "reject_on_worker_lost", "retry_on_worker_lost")


@pytest.fixture
def app() -> Iterator[Celery]:
    app = Celery("proj", broker="memory://", set_as_current=False)
    yield app
    app.close()


@pytest.fixture
def lane(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Environment of a GPU worker; the name of its queue."""
    environment = lane_of_gpu(Gpu(3, "GPU-3", "V100"))
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    current_gpu().refresh()
    yield environment["OWL_WORKER_QUEUE"]
    monkeypatch.undo()
    current_gpu().refresh()


def test_a_gpu_worker_sees_its_own_gpu_only() -> None:
    environment = lane_of_gpu(Gpu(3, "GPU-3", "V100"))

    assert environment["CUDA_VISIBLE_DEVICES"] == environment["OWL_GPU_UUID"] == "GPU-3"
    assert environment["OWL_WORKER_QUEUE"] == f"gpu.{HOST}.3"


def test_a_virtual_gpu_and_a_cpu_process_see_no_real_gpu() -> None:
    virtual = lane_of_gpu(Gpu(0, "SIM-0", "k80"), is_simulated=True)

    assert virtual["CUDA_VISIBLE_DEVICES"] == ""
    assert lane_of_cpu(4)["CUDA_VISIBLE_DEVICES"] == ""
    assert lane_of_cpu(4)["OWL_GPU_MODEL"] == "cpu"
    assert lane_of_cpu(4)["OWL_WORKER_CONCURRENCY"] == "4"


def test_two_workers_have_two_owners_unless_one_supervisor_says_otherwise() -> None:
    gpu = Gpu(0, "GPU-0", "V100")

    assert lane_of_gpu(gpu)["OWL_WORKER_OWNER"] != lane_of_gpu(gpu)["OWL_WORKER_OWNER"]
    assert lane_of_gpu(gpu, "me")["OWL_WORKER_OWNER"] == "me"


@pytest.mark.parametrize("value", ["1", "SIM-a-1"])
def test_the_option_takes_an_index_or_a_uuid(value: str) -> None:
    environment = lane_of_option(value, FakeGpus.of(["k80", "v100"], host="a"))

    assert environment["OWL_GPU_MODEL"] == "v100"
    assert environment["OWL_WORKER_QUEUE"] == f"gpu.{HOST}.1"


@pytest.mark.parametrize(("value", "index"), [("sim:k80", 0), ("sim:k80:7", 7)])
def test_the_option_takes_a_virtual_gpu(value: str, index: int) -> None:
    environment = lane_of_option(value, FakeGpus([]))

    assert environment["OWL_GPU_MODEL"] == "k80"
    assert environment["OWL_GPU_SIMULATED"] == "true"
    assert environment["OWL_WORKER_QUEUE"] == f"gpu.{HOST}.{index}"


@pytest.mark.parametrize(
    ("value", "sentence"),
    [
        ("7", "--gpu '7' is not a GPU of this host; it has 0 (SIM-a-0)."),
        ("sim:", "--gpu 'sim:' is not sim:MODEL or sim:MODEL:INDEX."),
        (
            "sim:h9000",
            "There is no virtual GPU 'h9000'; there are k80, p100, v100, t4, a10, a100, l4, l40s, "
            "h100, h200.",
        ),
        ("sim:k80:x", "--gpu 'sim:k80:x' is not sim:MODEL or sim:MODEL:INDEX."),
    ],
)
def test_an_option_that_makes_no_sense_is_a_sentence(value: str, sentence: str) -> None:
    with pytest.raises(WorkerError) as caught:
        lane_of_option(value, FakeGpus.of(["k80"], host="a"))

    assert str(caught.value) == sentence


def test_a_plain_worker_is_left_alone(app: Celery) -> None:
    configure_lane(app)

    assert app.conf.worker_prefetch_multiplier == 4
    assert app.conf.worker_pool_start_method == "fork"
    assert not app.conf.task_acks_late
    assert "queue_order_strategy" not in app.conf.broker_transport_options


def test_a_gpu_worker_holds_one_task_in_a_fresh_interpreter(app: Celery, lane: str) -> None:
    app.conf.broker_transport_options = {"visibility_timeout": 60}

    configure_lane(app)

    assert app.conf.worker_concurrency == app.conf.worker_prefetch_multiplier == 1
    assert app.conf.worker_pool_start_method == "spawn"
    assert app.conf.task_acks_late
    assert app.conf.broker_transport_options == {
        "visibility_timeout": 60,
        "queue_order_strategy": "priority",
    }


def test_a_virtual_gpu_keeps_the_cheaper_fork(
    app: Celery, lane: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OWL_GPU_SIMULATED", "true")
    current_gpu().refresh()

    configure_lane(app)

    assert app.conf.worker_pool_start_method == "fork"


@pytest.mark.parametrize(
    ("chosen", "excluded", "others"),
    [
        ([], [], ["celery"]),
        (["mail", "celery"], [], ["mail", "celery"]),
        ([], ["celery"], []),
    ],
    ids=["no option", "-Q mail,celery", "-X celery"],
)
def test_the_own_queue_comes_first(
    app: Celery, lane: str, chosen: list[str], excluded: list[str], others: list[str]
) -> None:
    app.amqp.queues.select(chosen)
    app.amqp.queues.deselect(excluded)

    consume_own_queue_first(app)

    assert list(app.amqp.queues.consume_from) == [lane, *others]
    assert app.amqp.queues[lane].consumer_arguments == {"x-priority": 10}


def test_queues_of_other_kinds_of_work_are_not_taken_up(app: Celery, lane: str) -> None:
    app.conf.task_queues = {"celery": {}, "mail": {}}

    consume_own_queue_first(app)

    assert list(app.amqp.queues.consume_from) == [lane, "celery"]


def test_a_queue_that_the_user_declared_keeps_its_arguments(app: Celery, lane: str) -> None:
    app.conf.task_queues = {"celery": {}, lane: {"queue_arguments": {"x-max-priority": 5}}}
    app.conf.task_create_missing_queues = False

    consume_own_queue_first(app)

    own = app.amqp.queues.consume_from[lane]
    assert own.queue_arguments == {"x-max-priority": 5}
    assert own.consumer_arguments == {"x-priority": 10}


class TestOption:
    """``--gpu`` is read by every worker of the application, also where it is not given."""

    def invoke(self, app: Celery, *arguments: str) -> Result:
        add_worker_options(app)
        command = click.Command("worker", params=list(app.user_options["worker"]))
        return CliRunner().invoke(command, arguments, obj=SimpleNamespace(app=app))

    @pytest.fixture(autouse=True)
    def unusable(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        monkeypatch.setenv("OWL_EXPLORATION_RATE", "2")
        # What the option sets is taken back at the end.
        for name in lane_of_cpu(1):
            monkeypatch.setenv(name, "")
        current_gpu().refresh()
        yield
        monkeypatch.undo()
        current_gpu().refresh()

    def test_a_setting_that_cannot_be_used_leaves_a_plain_worker(self, app: Celery) -> None:
        result = self.invoke(app)

        assert (result.exit_code, result.output) == (0, "")

    @pytest.mark.parametrize(
        ("queue", "arguments"), [("gpu.a.0", []), ("", ["--gpu", "sim:k80"])], ids=["set", "option"]
    )
    def test_but_stops_a_worker_with_a_gpu(
        self,
        app: Celery,
        monkeypatch: pytest.MonkeyPatch,
        queue: str,
        arguments: list[str],
    ) -> None:
        monkeypatch.setenv("OWL_WORKER_QUEUE", queue)

        result = self.invoke(app, *arguments)

        assert result.exit_code == 1
        assert result.output.startswith("Error: Setting EXPLORATION_RATE (or OWL_EXPLORATION_RATE")
        assert len(result.output.splitlines()) == 1


class TestLateAcknowledgement:
    """Tasks that were bound before the configuration was changed follow it, authors win."""

    def settle(self, app: Celery, task: Task) -> list[bool]:
        acknowledge_late(app)
        return [getattr(app.tasks[task.name], attribute) for attribute in LATE]

    def test_a_task_that_says_nothing_is_late(self, app: Celery, lane: str) -> None:
        @app.task(shared=False)
        def train() -> None: ...

        configure_lane(app)

        assert self.settle(app, train) == [True, True, True]

    def test_so_is_one_that_was_bound_earlier(self, app: Celery, lane: str) -> None:
        @app.task(shared=False)
        def train() -> None: ...

        app.finalize()
        assert not train.acks_late
        configure_lane(app)

        assert self.settle(app, train) == [True, True, True]

    @pytest.mark.parametrize("is_bound_early", [False, True])
    def test_what_its_decorator_says_stands(
        self, app: Celery, lane: str, is_bound_early: bool
    ) -> None:
        @app.task(shared=False, acks_late=False)
        def train() -> None: ...

        if is_bound_early:
            app.finalize()
        configure_lane(app)

        # Early acknowledgement means at most once: not sent again after its process was killed.
        assert self.settle(app, train) == [False, True, False]

    def test_early_acknowledgement_and_retry_can_both_be_said(self, app: Celery, lane: str) -> None:
        @app.task(shared=False, acks_late=False, retry_on_worker_lost=True)
        def train() -> None: ...

        configure_lane(app)

        assert self.settle(app, train) == [False, True, True]

    @pytest.mark.parametrize("is_bound_early", [False, True])
    @pytest.mark.parametrize("is_said_early", [False, True])
    @pytest.mark.parametrize(
        ("said", "late"),
        [
            ({"task_acks_late": False}, [False, True, False]),
            ({"task_acks_late": False, "task_retry_on_worker_lost": True}, [False, True, True]),
            ({"task_reject_on_worker_lost": False}, [True, False, True]),
            ({"task_retry_on_worker_lost": False}, [True, True, False]),
        ],
    )
    def test_what_the_configuration_says_stands(
        self,
        app: Celery,
        lane: str,
        said: dict[str, bool],
        late: list[bool],
        is_said_early: bool,
        is_bound_early: bool,
    ) -> None:
        @app.task(shared=False)
        def train() -> None: ...

        if is_said_early:
            app.conf.update(said)
        if is_bound_early:
            app.finalize()
        configure_lane(app)
        app.conf.update(said)
        configure_lane(app)

        assert self.settle(app, train) == late

    @pytest.mark.parametrize(
        ("source", "namespace"),
        [
            ({"task_acks_late": False}, None),
            ({"CELERY_TASK_ACKS_LATE": False}, "CELERY"),
            ({"CELERY_ACKS_LATE": False}, None),
        ],
        ids=["new names", "a namespace", "old names"],
    )
    def test_whatever_name_it_uses(
        self, app: Celery, lane: str, source: dict[str, bool], namespace: str | None
    ) -> None:
        app.config_from_object(source, namespace=namespace)

        @app.task(shared=False)
        def train() -> None: ...

        configure_lane(app)

        assert self.settle(app, train) == [False, True, False]

    def test_old_names_for_other_settings_change_nothing(self, app: Celery, lane: str) -> None:
        app.config_from_object({"CELERY_TRACK_STARTED": True})

        @app.task(shared=False)
        def train() -> None: ...

        configure_lane(app)

        assert self.settle(app, train) == [True, True, True]

    @pytest.mark.parametrize(
        ("said", "consequence"),
        [
            ({}, ""),
            ({"task_reject_on_worker_lost": False}, ""),
            (
                {"task_acks_late": False},
                "task_acks_late is false in the configuration: the task that runs in a worker or "
                "pool process that is killed is lost.",
            ),
            (
                {"task_retry_on_worker_lost": False},
                "task_retry_on_worker_lost is false in the configuration: the task of a killed "
                "pool process goes back to its queue, without a limit, and is not routed anew.",
            ),
            (
                {"task_retry_on_worker_lost": False, "task_reject_on_worker_lost": False},
                "task_retry_on_worker_lost and task_reject_on_worker_lost are false in the "
                "configuration: the task of a killed pool process is lost; it fails with "
                "WorkerLostError.",
            ),
        ],
    )
    def test_the_worker_says_what_follows(
        self,
        app: Celery,
        lane: str,
        caplog: pytest.LogCaptureFixture,
        said: dict[str, bool],
        consequence: str,
    ) -> None:
        app.conf.update(said)
        configure_lane(app)

        prepare_worker(SimpleNamespace(app=app))

        assert caplog.messages == ([f"owl: {consequence}"] if consequence else [])

    @pytest.mark.parametrize("is_bound_early", [False, True])
    def test_what_its_base_class_says_stands(
        self, app: Celery, lane: str, is_bound_early: bool
    ) -> None:
        class Once(Task):  # type: ignore[misc]
            reject_on_worker_lost = False

        @app.task(shared=False, base=Once)
        def train() -> None: ...

        if is_bound_early:
            app.finalize()
        configure_lane(app)

        assert self.settle(app, train) == [True, False, True]

    def test_what_annotations_say_stands(self, app: Celery, lane: str) -> None:
        app.conf.task_annotations = {"*": {"retry_on_worker_lost": False}}

        @app.task(shared=False)
        def train() -> None: ...

        app.finalize()
        configure_lane(app)

        assert self.settle(app, train) == [True, True, False]
