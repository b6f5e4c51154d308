"""The example app: real work, honest sizes, and replay at the speed of the GPU model."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from owl_celery.errors import InputError
from owl_celery.gpus import current_gpu
from owl_celery.task_view import view_of_task
from workers import arrays, tasks
from workers.app import app

JOB = "ResNet-18 (batch size 16)"


def describe(task: Any, *args: Any, **kwargs: Any) -> tuple[str, float]:
    view = view_of_task(task.name, args, kwargs, app.tasks[task.name])
    return view.task_type, round(view.size, 6)


@pytest.fixture
def on_v100(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OWL_GPU_MODEL", "Tesla V100-SXM2-16GB")
    current_gpu().refresh()
    yield
    monkeypatch.undo()
    current_gpu().refresh()


def test_a_resized_image_keeps_what_is_linear() -> None:
    ramp = np.linspace(0.0, 1.0, 64, dtype=np.float32)
    image = np.repeat(ramp[None, :, None], 48, axis=0).repeat(3, axis=2)

    resized = arrays.resize(image, 24, 32)

    assert resized.shape == (24, 32, 3)
    centres = (np.arange(32) + 0.5) * 2 - 0.5
    np.testing.assert_allclose(resized[5, :, 1], centres / 63, atol=1e-6)


def test_an_image_of_its_own_size_is_left_as_it_is() -> None:
    image = arrays.random_array((20, 30, 3), seed=1)

    np.testing.assert_array_equal(arrays.resize(image, 20, 30), image)


def test_enlarging_stays_within_the_values_of_the_image() -> None:
    image = arrays.random_array((8, 8, 3), seed=1)

    enlarged = arrays.resize(image, 50, 33)

    assert image.min() <= enlarged.min() <= enlarged.max() <= image.max()


def test_tasks_do_what_they_say_and_repeat_with_their_seed() -> None:
    left, right = arrays.random_array((50, 50), 7), arrays.random_array((50, 50), 8)

    assert tasks.matrix_product(50, seed=7) == pytest.approx((left @ right).mean(), rel=1e-5)
    assert tasks.fft(32, seed=3) == tasks.fft(32, seed=3) != tasks.fft(32, seed=4)
    assert tasks.image_resize(20, 30, source=16) == [20, 30, 3]


def test_sizes_follow_the_work_by_position_and_by_name() -> None:
    assert describe(tasks.matrix_product, 2000) == ("workers.tasks.matrix_product", 8.0)
    assert describe(tasks.matrix_product, order=2000)[1] == 8.0
    assert describe(tasks.fft, 500)[1] == 0.25
    assert describe(tasks.image_resize, 1000, width=2000)[1] == 2.0
    assert describe(tasks.replay, JOB) == (f"replay {JOB}", 1.0)
    assert describe(tasks.replay, JOB, size=3.5) == (f"replay {JOB}", 3.5)


@pytest.mark.usefixtures("on_v100")
def test_replay_takes_as_long_as_the_table_says() -> None:
    expected = 4.0 * 0.5 / 32.353384328946916  # steps, scale, steps a second

    started = time.monotonic()
    result = tasks.replay(JOB, size=4.0, scale_seconds=0.5)
    elapsed = time.monotonic() - started

    assert result == {"gpu_model": "v100", "seconds": pytest.approx(expected)}
    assert expected <= elapsed < expected + 0.25


@pytest.mark.parametrize(
    ("product", "model"),
    [("Tesla V100-SXM2-16GB", "v100"), ("Tesla P100-PCIE-16GB", "p100"), ("k80", "k80")],
)
def test_product_names_are_found_in_the_table(product: str, model: str) -> None:
    assert tasks.table_model(product) == model


def test_replay_on_a_model_that_was_not_measured_says_so() -> None:
    with pytest.raises(InputError, match="The table has no ''; it has: k80, p100, v100"):
        tasks.replay(JOB)
