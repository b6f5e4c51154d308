"""The service table, the fleet and the capacity of one with the other."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from owl_celery.errors import InputError
from owl_celery.simulate.capacity import lp_capacity
from owl_celery.simulate.instance import Instance
from owl_celery.simulate.table import ServiceTable, gavel_table, parse_fleet

SMALL = "task_type,k80,v100\ntrain,0.5,2\nscore,4,\n"


def test_throughput_cells_become_seconds() -> None:
    table = ServiceTable.parse(SMALL, "throughput")
    assert table.seconds_on("train", "k80") == 2.0
    assert table.seconds_on("score", "v100") is None


def test_seconds_cells_stay_seconds() -> None:
    assert ServiceTable.parse(SMALL, "seconds").seconds_on("train", "v100") == 2.0


def test_a_file_with_a_byte_order_mark_blank_lines_and_spaces_is_read(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufefftype, a ,b\n\n x ,1, 2\n", encoding="utf-8")
    table = ServiceTable.read(path, "seconds")
    assert (table.types, table.models) == (("x",), ("a", "b"))


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "row 1: needs a head"),
        ("type\nx\n", "row 1: needs a head"),
        ("type,a\n", "has no row"),
        ("type,a,a\nx,1,1\n", "GPU model 'a' is there twice"),
        ("type,a,\nx,1,1\n", "GPU model 2 has no name"),
        ("type,a\nx,1\nx,1\n", "task type 'x' is there twice"),
        ("type,a\n,1\n", "task type 1 has no name"),
        ("type,a,b\nx,1\n", "row 2: has 2 cells, the head has 3"),
        ("type,a,b\nx,1,fast\n", "row 2, column 'b': 'fast' is not a number"),
        ("type,a,b\n\nx,1,-3\n", "row 3, column 'b': -3 is not a finite number above 0"),
        ("type,a,b\nx,nan,1\n", "row 2, column 'a': nan is not"),
        ("type,a,b\nx,0,1\n", "row 2, column 'a': 0 is not"),
        ("type,a,b\nx,,\n", "row 2: 'x' fits on no GPU model"),
    ],
)
def test_a_bad_table_names_the_row_and_the_column(text: str, complaint: str) -> None:
    with pytest.raises(InputError, match=r"t\.csv") as error:
        ServiceTable.parse(text, name="t.csv")
    assert complaint in str(error.value)


def test_a_missing_file_and_a_binary_file_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read"):
        ServiceTable.read(tmp_path / "none.csv")
    (tmp_path / "b.csv").write_bytes(b"\xff\xfe\x00\x01")
    with pytest.raises(InputError, match="cannot be read"):
        ServiceTable.read(tmp_path / "b.csv")


def test_an_unknown_type_or_model_is_named_with_what_there_is() -> None:
    table = ServiceTable.parse(SMALL)
    with pytest.raises(InputError, match="no 'h100'; it has: k80, v100"):
        table.seconds_on("train", "h100")
    with pytest.raises(InputError, match="no GPU model 'h100'"):
        table.restricted(("h100",))
    with pytest.raises(InputError, match="'score' fits on no GPU model of the fleet"):
        table.restricted(("v100",))


def test_scaling_keeps_all_ratios_and_levelling_those_within_a_type() -> None:
    table = gavel_table()
    scaled, levelled = table.scaled(2.0), table.levelled()
    np.testing.assert_allclose(
        scaled.seconds / table.seconds, scaled.seconds[0, 0] / table.seconds[0, 0]
    )
    assert scaled.seconds.min(axis=1).mean() == pytest.approx(2.0)
    np.testing.assert_allclose(levelled.seconds.min(axis=1), 1.0)


def test_the_packaged_table_shows_what_makes_routing_worth_while() -> None:
    table = gavel_table()
    assert (len(table.types), table.models) == (26, ("k80", "p100", "v100"))
    resnet = table.types.index("ResNet-18 (batch size 64)")
    recommendation = table.types.index("Recommendation (batch size 512)")
    ratio = table.seconds[:, 0] / table.seconds[:, 2]
    assert ratio[resnet] > 3.0
    assert ratio[recommendation] < 1.0


@pytest.mark.parametrize(
    "text", ["", "k80", "k80=", "=3", "k80=0", "k80=-1", "k80=x", "k80=1,", "a=1000000"]
)
def test_a_bad_fleet_is_refused_in_a_sentence(text: str) -> None:
    with pytest.raises(InputError, match="is not MODEL=COUNT"):
        parse_fleet(text)


def test_a_gpu_model_named_twice_is_refused() -> None:
    with pytest.raises(InputError, match="'k80' twice"):
        parse_fleet("k80=1,k80=2")


@st.composite
def programs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    types, models = draw(st.integers(1, 12)), draw(st.integers(1, 5))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    seconds = np.exp(rng.normal(size=(types, models)))
    holes = rng.uniform(size=seconds.shape) < draw(st.sampled_from([0.0, 0.5]))
    holes[np.arange(types), rng.integers(models, size=types)] = False
    seconds[holes] = np.nan
    if draw(st.booleans()):
        seconds = np.round(seconds) + 1.0
    return seconds, rng.uniform(0.01, 1.0, types), rng.integers(1, 9, models).astype(float)


@given(programs())
def test_the_capacity_is_proved_by_its_own_prices(
    program: tuple[np.ndarray, np.ndarray, np.ndarray],
) -> None:
    seconds, mix, gpus = program
    capacity = lp_capacity(seconds, mix, gpus)
    share = mix / mix.sum()
    load = (share[:, None] * np.nan_to_num(seconds) * capacity.fractions).sum(axis=0) / gpus
    np.testing.assert_allclose(capacity.fractions.sum(axis=1), 1.0)
    assert (capacity.fractions >= 0.0).all()
    assert (capacity.fractions[np.isnan(seconds)] == 0.0).all()
    assert capacity.rate * load.max() == pytest.approx(1.0, rel=1e-9)
    # Weak duality: no split has a lower busiest load than these prices allow.
    bound = share @ np.nanmin(seconds * capacity.prices, axis=1) / gpus.sum()
    assert bound * capacity.rate == pytest.approx(1.0, rel=1e-6)


def test_a_type_that_fits_nowhere_has_no_capacity() -> None:
    with pytest.raises(InputError, match="fits on no GPU model"):
        lp_capacity(np.array([[np.nan, np.nan]]), np.ones(1), np.ones(2))


def test_a_type_without_a_share_does_not_count() -> None:
    capacity = lp_capacity(np.array([[1.0, 2.0], [9.0, 9.0]]), np.array([1.0, 0.0]), np.ones(2))
    assert capacity.rate == pytest.approx(1.5)


def test_an_instance_has_a_mean_best_service_of_one_second_and_depends_on_its_seed() -> None:
    fleet = parse_fleet("v100=2,k80=3")
    first, again, other = (Instance.draw(gavel_table(), fleet, seed) for seed in (0, 0, 1))
    assert first.mean_best_seconds == pytest.approx(1.0)
    np.testing.assert_array_equal(first.table.seconds, again.table.seconds)
    assert not np.array_equal(first.table.seconds, other.table.seconds)
    assert first.table.models == first.fleet().models == ("k80", "v100")
    assert [first.fleet().gpu_model(row) for row in range(5)] == ["k80"] * 3 + ["v100"] * 2


def test_a_measured_instance_keeps_the_seconds_of_the_table() -> None:
    table = ServiceTable.parse(SMALL, "seconds")
    instance = Instance.as_measured(table, {"v100": 1, "k80": 1}, np.array([3.0, 1.0]))
    np.testing.assert_array_equal(instance.table.seconds, [[0.5, 2.0], [4.0, np.nan]])
    np.testing.assert_allclose(instance.mix, [0.75, 0.25])


def test_the_shared_queue_wastes_a_quarter_or_more_of_the_capacity() -> None:
    """What a pull of any task by any GPU can serve, over what a plan can."""
    for seed in range(5):
        instance = Instance.draw(gavel_table(), parse_fleet("k80=4,p100=4,v100=4"), seed)
        pulled = float((instance.gpus / (instance.mix @ instance.table.seconds)).sum())
        assert 0.66 < pulled / instance.capacity.rate < 0.78
