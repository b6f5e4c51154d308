"""Figures of a run, whole studies, and the command."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from owl_celery.cli import owl
from owl_celery.errors import InputError
from owl_celery.simulate.conditions import Run
from owl_celery.simulate.results import figures, is_stable
from owl_celery.simulate.study import Job, Scenario, run_jobs
from owl_celery.simulate.table import ServiceTable, gavel_table

FLEET = {"k80": 1, "v100": 1}


def finished(response: list[float] | np.ndarray, tries: list[int] | None = None) -> Run:
    count = len(response)
    return Run(
        arrived=np.arange(count, dtype=float),
        response=np.array(response, dtype=float),
        tries=np.array(tries or [1] * count),
        queues=np.zeros(count, dtype=np.int64),
        lost=0,
        stolen=count // 2,
        explored=count // 4,
    )


def test_figures_leave_out_the_warm_up_except_for_the_first_tasks() -> None:
    response = np.concatenate([np.full(1000, 9.0), np.full(4000, 5.0), np.full(1000, 1.0)])
    row = figures(finished(response), "p", 0.5, 3, warmup=5000, tasks_per_second=1.0)
    assert (row.mean, row.p50, row.p95, row.p99) == (1.0, 1.0, 1.0, 1.0)
    assert (row.mean_first_1k, row.mean_1k_5k) == (9.0, 5.0)
    assert (row.tasks, row.stable, row.stolen_ratio, row.explored_ratio) == (1000, True, 0.5, 0.25)


def test_a_short_run_has_no_transients() -> None:
    row = figures(finished([1.0, 2.0]), "p", 0.5, 0, warmup=0, tasks_per_second=1.0)
    assert (row.mean_first_1k, row.mean_1k_5k) == (None, None)


def test_the_share_of_failed_tries_counts_tries_not_tasks() -> None:
    row = figures(finished([1.0] * 4, [1, 1, 3, 1]), "p", 0.5, 0, 0, 1.0)
    assert row.failed_ratio == pytest.approx(2.0 / 6.0)


def test_a_task_that_never_ran_makes_the_policy_unstable() -> None:
    row = figures(finished([1.0, np.nan, 1.0]), "p", 0.5, 0, 0, 1.0)
    assert not row.stable
    assert row.mean == 1.0


def test_growth_in_proportion_to_time_is_unstable_and_noise_is_not() -> None:
    rng = np.random.default_rng(0)
    arrived = np.arange(5000) / 10.0
    noise = rng.exponential(3.0, 5000)
    assert is_stable(arrived, noise)
    assert not is_stable(arrived, noise + 0.02 * arrived)
    assert is_stable(arrived, noise + np.where(arrived < 100.0, 20.0, 0.0))
    assert not is_stable(arrived, noise + 0.1 * (arrived[-1] - arrived))
    assert is_stable(np.zeros(5000), noise)
    assert is_stable(arrived[:500], noise[:500] + arrived[:500])


def test_the_verdict_agrees_with_the_known_capacity_of_the_shared_queue() -> None:
    scenario = Scenario(
        gavel_table(), {"k80": 4, "p100": 4, "v100": 4}, 0.6, tasks=15_000, warmup=5000
    )
    assert scenario.run("shared_fifo", 0)[0].stable
    overloaded = Scenario(
        gavel_table(), {"k80": 4, "p100": 4, "v100": 4}, 0.85, tasks=15_000, warmup=5000
    )
    assert not overloaded.run("shared_fifo", 0)[0].stable
    assert overloaded.run("jsed_oracle", 0)[0].stable


def test_all_policies_of_a_seed_meet_the_same_tasks() -> None:
    scenario = Scenario(gavel_table(), FLEET, tasks=200, warmup=0)
    runs = [scenario.run(name, 4)[1] for name in ("shared_fifo", "shortest_queue")]
    np.testing.assert_array_equal(runs[0].arrived, runs[1].arrived)


def test_two_processes_give_the_rows_that_one_gives(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    command = [
        sys.executable, "-c", "from owl_celery.cli import owl; owl()", "simulate",
        "--tasks", "300", "--warmup", "50", "--seeds", "0-1", "--fleet", "k80=1,v100=1",
        "--policies", "shared_fifo,naive_q", "--processes", "2", "--json", str(path),
    ]  # fmt: skip
    subprocess.run(command, check=True, capture_output=True, timeout=120)
    rows = json.loads(path.read_text())["rows"]
    scenario = Scenario(gavel_table(), FLEET, tasks=300, warmup=50)
    jobs = [Job(scenario, name, seed) for seed in (0, 1) for name in ("shared_fifo", "naive_q")]
    expected = [(job.policy, job.seed, row.mean) for job, row in run_jobs(jobs, processes=1)]
    assert [(row["policy"], row["seed"], row["mean"]) for row in rows] == expected


def test_a_trace_keeps_its_times_unless_a_load_is_asked_for(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text("time,type,size\n0,x,1\n4,x,2\n8,x,1\n")
    table = ServiceTable.parse("t,a\nx,1\n", "seconds")
    recorded = Scenario(table, {"a": 1}, load=None, arrivals=trace, tasks=0, warmup=0)
    row, run = recorded.run("shared_fifo", 0)
    assert run.response.tolist() == [1.0, 2.0, 1.0]
    assert row.load == pytest.approx(0.5)
    squeezed = Scenario(table, {"a": 1}, load=1.0, arrivals=trace, warmup=0)
    assert squeezed.run("shared_fifo", 0)[1].arrived.tolist() == [0.0, 2.0, 4.0]


def test_scenarios_that_make_no_sense_are_input_errors(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="load above 0"):
        Scenario(gavel_table(), FLEET, load=None).world(0)
    with pytest.raises(InputError, match="leaves none of 10 tasks"):
        Scenario(gavel_table(), FLEET, tasks=10, warmup=10).run("random", 0)
    trace = tmp_path / "t.csv"
    trace.write_text("time,type\n1,x\n1,x\n")
    table = ServiceTable.parse("t,a\nx,1\n")
    with pytest.raises(InputError, match="arrive at the same time"):
        Scenario(table, {"a": 1}, None, trace).world(0)


def test_the_command_prints_a_table_and_writes_rows(tmp_path: Path) -> None:
    path = tmp_path / "rows.json"
    arguments = [
        "simulate", "--tasks", "1500", "--warmup", "300", "--seeds", "0-1", "--load", "0.4,0.6",
        "--policies", "shared_fifo,jsed_oracle", "--processes", "1", "--json", str(path),
    ]  # fmt: skip
    result = CliRunner().invoke(owl, arguments)
    assert result.exit_code == 0, result.output
    assert "jsed_oracle" in result.output
    rows = json.loads(path.read_text())["rows"]
    assert len(rows) == 8
    assert {(row["policy"], row["load"], row["seed"]) for row in rows} == {
        (policy, load, seed)
        for policy in ("shared_fifo", "jsed_oracle")
        for load in (0.4, 0.6)
        for seed in (0, 1)
    }
    for key in ("mean", "p50", "p95", "p99", "mean_first_1k"):
        assert rows[0][key] > 0.0
    assert rows[0]["mean_1k_5k"] is None
    assert rows[0]["stable"] is True


def test_the_command_takes_every_condition_at_once(tmp_path: Path) -> None:
    events = tmp_path / "e.csv"
    events.write_text(
        "time,action,target,type,value\n"
        "5,throttle,gpu.host.0,,0.5\n"
        "6,stop,gpu.host.1,,\n"
        "9,return,gpu.host.1,,\n"
        "9,fail,v100,,0.1\n"
    )
    arguments = [
        "simulate", "--tasks", "400", "--warmup", "100", "--seeds", "3", "--size-cv", "1",
        "--fleet", "k80=2,v100=2", "--arrivals", "mmpp", "--size-feature", "--steal",
        "--steal-tick", "0.1", "--routers", "3", "--view-age", "0.2", "--events", str(events),
        "--switch-cost", "0.3", "--set", "exploration_rate=0.1", "--baseline", "jsed_oracle",
        "--policies", "expected_completion,jsed_oracle,shared_fifo", "--processes", "1",
    ]  # fmt: skip
    result = CliRunner().invoke(owl, arguments)
    assert result.exit_code == 0, result.output
    assert "1/1" in result.output


def test_the_command_lists_the_policies() -> None:
    result = CliRunner().invoke(owl, ["simulate", "--list"])
    assert "late_binding_oracle" in result.output.split()


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--policies", "magic"], "No policy 'magic'"),
        (["--policies", ","], "at least one policy"),
        (["--baseline", "naive_q"], "'naive_q' is not among"),
        (["--fleet", "k80"], "'k80' is not MODEL=COUNT"),
        (["--fleet", "h100=1"], "no GPU model 'h100'"),
        (["--load", "high"], "Load 'high'"),
        (["--load", "-1"], "Load '-1'"),
        (["--seeds", "a-b"], "Seeds 'a-b'"),
        (["--seeds", "5-1"], "Seeds '5-1' name none"),
        (["--arrivals", "none.csv"], "none.csv cannot be read"),
        (["--table", "none.csv"], "none.csv cannot be read"),
        (["--events", "none.csv"], "none.csv cannot be read"),
        (["--set", "exploration_rate"], "is not NAME=VALUE"),
        (["--set", "colour=red", "--policies", "random"], "Unknown setting 'colour'"),
        (["--tasks", "10"], "leaves none of 10 tasks"),
    ],
)
def test_the_command_refuses_nonsense_in_one_sentence(arguments: list[str], complaint: str) -> None:
    result = CliRunner().invoke(owl, ["simulate", "--processes", "1", *arguments])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert complaint in result.output
    assert result.output.count("\n") == 1


def test_the_example_on_the_page_runs(capsys: pytest.CaptureFixture[str]) -> None:
    page = Path(__file__).parents[2] / "docs" / "simulate.md"
    block = page.read_text(encoding="utf-8").split("```python\n")[1].split("```")[0]
    exec(compile(block, str(page), "exec"), {})
    mean, p99, stable = capsys.readouterr().out.splitlines()[0].split()
    assert 0.0 < float(mean) < float(p99)
    assert stable == "True"
