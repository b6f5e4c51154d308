"""Random streams, traces and event files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from owl_celery.errors import InputError
from owl_celery.simulate.arrivals import mmpp, poisson, read_trace
from owl_celery.simulate.faults import Action, read_faults

MIX = np.array([0.2, 0.8])


def test_a_poisson_stream_has_its_rate_mix_and_size_variation() -> None:
    tasks = poisson(5.0, MIX, 50_000, 1.0, seed=3)
    assert len(tasks) / tasks.times[-1] == pytest.approx(5.0, rel=0.02)
    assert (tasks.types == 1).mean() == pytest.approx(0.8, abs=0.01)
    assert tasks.sizes.mean() == pytest.approx(1.0, abs=0.02)
    assert tasks.sizes.std() == pytest.approx(1.0, abs=0.06)


def test_the_tasks_of_a_seed_are_the_same_at_every_rate_and_burstiness() -> None:
    slow, fast = poisson(1.0, MIX, 100, 0.3, seed=1), poisson(4.0, MIX, 100, 0.3, seed=1)
    bursty = mmpp(4.0, MIX, 100, 0.3, seed=1)
    np.testing.assert_allclose(slow.times, 4.0 * fast.times)
    for other in (fast, bursty):
        np.testing.assert_array_equal(slow.types, other.types)
        np.testing.assert_array_equal(slow.sizes, other.sizes)


def test_the_first_tasks_do_not_depend_on_how_many_follow() -> None:
    for stream in (poisson, mmpp):
        few, many = (stream(2.0, MIX, count, 0.3, seed=1) for count in (100, 500))
        np.testing.assert_allclose(few.times, many.times[:100])
        np.testing.assert_array_equal(few.types, many.types[:100])
        np.testing.assert_array_equal(few.sizes, many.sizes[:100])


def test_a_size_variation_of_zero_means_equal_sizes() -> None:
    np.testing.assert_array_equal(poisson(1.0, MIX, 10, 0.0, seed=1).sizes, 1.0)


def test_a_bursty_stream_has_its_mean_rate_and_far_more_variation() -> None:
    def spread(times: np.ndarray) -> float:
        counts = np.bincount((times // 5.0).astype(int))
        return float(counts.var() / counts.mean())

    bursty = mmpp(8.0, MIX, 100_000, 0.3, seed=2)
    assert len(bursty) / bursty.times[-1] == pytest.approx(8.0, rel=0.1)
    assert (np.diff(bursty.times) >= 0.0).all()
    assert spread(poisson(8.0, MIX, 100_000, 0.3, seed=2).times) == pytest.approx(1.0, abs=0.1)
    assert spread(bursty.times) > 5.0


def test_a_trace_starts_at_zero_and_may_leave_out_size_and_model(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("time,type,size,model\n100,b,,\n\n101.5,a,2.5,llama\n")
    tasks = read_trace(path, ("a", "b"))
    assert tasks.times.tolist() == [0.0, 1.5]
    assert tasks.types.tolist() == [1, 0]
    assert tasks.sizes.tolist() == [1.0, 2.5]
    assert tasks.models == [None, "llama"]
    np.testing.assert_allclose(tasks.mix(2), [2.5 / 3.5, 1.0 / 3.5])
    path.write_text("time,type\n0,b\n")
    assert read_trace(path, ("a", "b")).models is None


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "row 1: the head must be"),
        ("type,time\n", "row 1: the head must be"),
        ("time,type,weight\n", "row 1: the head must be"),
        ("time,type\n", "has no task"),
        ("time,type\n1\n", "row 2: has 1 cells, the head has 2"),
        ("time,type\nnoon,a\n", "row 2, column 'time': 'noon' is not a number"),
        ("time,type\ninf,a\n", "row 2, column 'time': inf is not finite"),
        ("time,type\n2,a\n1,a\n", "row 3, column 'time': 1 comes before 2"),
        ("time,type\n1,z\n", "row 2, column 'type': the table has no 'z'"),
        ("time,type,size\n1,a,0\n", "row 2, column 'size': 0 is not above 0"),
        ("time,type,size\n1,a,big\n", "row 2, column 'size': 'big' is not a number"),
    ],
)
def test_a_bad_trace_names_the_row_and_the_column(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"t\.csv") as error:
        read_trace(path, ("a",))
    assert complaint in str(error.value)


def test_events_are_sorted_by_time(tmp_path: Path) -> None:
    path = tmp_path / "e.csv"
    path.write_text(
        "time,action,target,type,value\n"
        "9,return,q0,,\n"
        "1,throttle,q0,,0.25\n"
        "\n"
        "5,stop,q0,,\n"
        "6,fail,k80,train,0.5\n"
        "7,fail,k80,,0\n"
    )
    faults = read_faults(path, ["q0"], ["k80"], ["train"])
    assert [fault.time for fault in faults] == [1.0, 5.0, 6.0, 7.0, 9.0]
    assert (faults[0].action, faults[0].target, faults[0].value) == (Action.THROTTLE, "q0", 0.25)
    assert (faults[2].task_type, faults[3].task_type) == ("train", "")


HEAD = "time,action,target,type,value\n"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("time,what\n", "row 1: the head must be time,action,target,type,value"),
        (HEAD + "1,stop,q0\n", "row 2: has 3 cells, the head has 5"),
        (HEAD + "1,explode,q0,,\n", "row 2, column 'action': 'explode' is not throttle"),
        (HEAD + "1,stop,q9,,\n", "row 2, column 'target': 'q9' is no queue of the fleet"),
        (HEAD + "1,fail,q9,,1\n", "row 2, column 'target': 'q9' is no GPU model or queue"),
        (HEAD + "1,fail,k80,rest,1\n", "row 2, column 'type': 'rest' is not known here"),
        (HEAD + "1,stop,q0,train,\n", "row 2, column 'type': 'train' is not known here"),
        (HEAD + "-1,stop,q0,,\n", "row 2, column 'time': -1 is not finite and at least 0"),
        (HEAD + "soon,stop,q0,,\n", "row 2, column 'time': 'soon' is not a number"),
        (HEAD + "1,throttle,q0,,0\n", "row 2, column 'value': 0 is not in 0.001-1000"),
        (HEAD + "1,fail,k80,,2\n", "row 2, column 'value': 2 is not in 0-1"),
        (HEAD + "1,stop,q0,,3\n", "row 2, column 'value': stop takes none"),
    ],
)
def test_a_bad_event_file_names_the_row_and_the_column(
    tmp_path: Path, text: str, complaint: str
) -> None:
    path = tmp_path / "e.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=r"e\.csv") as error:
        read_faults(path, ["q0"], ["k80"], ["train"])
    assert complaint in str(error.value)


def test_missing_files_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        read_trace(tmp_path / "none.csv", ("a",))
    with pytest.raises(InputError, match="cannot be read"):
        read_faults(tmp_path / "none.csv", [], [], [])
