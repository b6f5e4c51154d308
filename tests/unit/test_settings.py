from __future__ import annotations

import os
import traceback
from typing import Any

import pytest
from celery import Celery
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from owl_celery.errors import SettingsError
from owl_celery.settings import Settings

CONTRACT = {
    "ENABLE_CONTINUOUS_LEARNING": "false",
    "CONTINUOUS_LEARNING_STORAGE_PATH": "/var/lib/owl",
    "EXPLORATION_RATE": "0.5",
    "LEARNING_RATE": "0.5",
    "ENABLE_REINFORCEMENT_LEARNING": "false",
    "ENABLE_METRICS": "false",
    "METRICS_PORT": "9100",
    "DATABASE_URL": "sqlite://",
    "REDIS_URL": "redis://",
}


@pytest.fixture(autouse=True)
def empty_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith("OWL_") or name in (*CONTRACT, "CUDA_VISIBLE_DEVICES"):
            monkeypatch.delenv(name)


def test_the_defaults_are_those_of_the_contract() -> None:
    settings = Settings.load()

    assert settings.enable_continuous_learning
    assert str(settings.continuous_learning_storage_path) == "/app/data/continuous_learning"
    assert settings.exploration_rate == 0.2
    assert settings.learning_rate == 0.1
    assert settings.enable_reinforcement_learning
    assert settings.enable_metrics
    assert settings.metrics_port == 9090
    assert settings.database_url is None
    assert settings.redis_url is None


@pytest.mark.parametrize("prefix", ["", "OWL_"])
@pytest.mark.parametrize(("name", "value"), CONTRACT.items())
def test_each_contract_name_is_read_bare_and_prefixed(
    monkeypatch: pytest.MonkeyPatch, prefix: str, name: str, value: str
) -> None:
    monkeypatch.setenv(prefix + name, value)

    field = name.lower()
    assert getattr(Settings.load(), field) != Settings.model_fields[field].default


def test_other_names_need_the_prefix(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLICY", "random")
    assert Settings.load().policy == "q_learning"

    monkeypatch.setenv("OWL_POLICY", "random")
    assert Settings.load().policy == "random"


def test_arguments_beat_prefixed_beat_bare_beat_conf_beat_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def rate(conf: dict[str, float], **arguments: float) -> float:
        return Settings.load(conf, **arguments).exploration_rate

    conf = {"owl_exploration_rate": 0.3}
    assert rate({}) == 0.2
    assert rate(conf) == 0.3
    monkeypatch.setenv("EXPLORATION_RATE", "0.4")
    assert rate(conf) == 0.4
    monkeypatch.setenv("OWL_EXPLORATION_RATE", "0.5")
    assert rate(conf) == 0.5
    assert rate(conf, exploration_rate=0.6) == 0.6


def test_an_empty_variable_is_an_unset_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWL_EXPLORATION_RATE", "")
    monkeypatch.setenv("EXPLORATION_RATE", "0.4")

    assert Settings.load().exploration_rate == 0.4


def test_no_visible_gpu_is_not_the_same_as_all(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Settings.load().cuda_visible_devices is None

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert Settings.load({"owl_cuda_visible_devices": "1"}).cuda_visible_devices == ""
    assert Settings.load(cuda_visible_devices="0").cuda_visible_devices == "0"

    monkeypatch.setenv("OWL_CUDA_VISIBLE_DEVICES", "0")
    assert Settings.load().cuda_visible_devices == "0"


@pytest.mark.parametrize("namespace", [None, "CELERY"])
def test_celery_configuration_is_read_under_any_namespace(namespace: str | None) -> None:
    prefix = f"{namespace}_OWL_" if namespace else "owl_"
    source = {f"{prefix}seed" if namespace is None else f"{prefix}SEED": 7}
    app = Celery("proj")
    app.config_from_object(source, namespace=namespace)

    assert Settings.load(app.conf).seed == 7


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("exploration_rate", -0.1),
        ("exploration_rate", 1.1),
        ("exploration_rate", float("nan")),
        ("learning_rate", 0.0),
        ("learning_rate", 1.1),
        ("metrics_port", 0),
        ("metrics_port", 65_536),
        ("outcome_retention_count", -1),
        ("stream_max_length", 10),
        ("view_stale_seconds", 0.0),
        ("view_stale_seconds", float("inf")),
        ("heartbeat_seconds", 60.0),
        ("tick_seconds", float("nan")),
        ("worker_concurrency", 0),
        ("namespace", "with space"),
        ("seed", "seven"),
        ("enable_metrics", "perhaps"),
    ],
)
def test_a_value_out_of_bounds_is_refused_in_one_sentence(field: str, value: object) -> None:
    arguments: dict[str, Any] = {field: value}
    with pytest.raises(SettingsError) as caught:
        Settings.load(**arguments)

    message = str(caught.value)
    assert message.startswith("Setting ")
    assert f"OWL_{field.upper()}" in message
    assert f"app.conf.owl_{field}" in message
    assert message.endswith(".")
    assert "\n" not in message


def test_the_sentence_names_the_bare_variable_only_where_it_is_read() -> None:
    with pytest.raises(SettingsError, match=r"^Setting METRICS_PORT \(or OWL_METRICS_PORT, or app"):
        Settings.load(metrics_port=0)
    with pytest.raises(SettingsError, match=r"^Setting OWL_NAMESPACE \(or app\.conf"):
        Settings.load(namespace="a b")


@pytest.mark.parametrize("where", ["argument", "conf"])
def test_an_unknown_name_is_refused_with_the_nearest_known_one(where: str) -> None:
    with pytest.raises(SettingsError, match="Unknown setting 'polcy'; did you mean 'policy'"):
        if where == "argument":
            Settings.load(polcy="random")
        else:
            Settings.load({"owl_polcy": "random"})


def test_a_name_like_no_other_is_refused_too() -> None:
    with pytest.raises(SettingsError, match="Unknown setting 'xyzzy'"):
        Settings.load(xyzzy=1)


@pytest.mark.parametrize(
    "arguments",
    [
        {"view_stale_seconds": 20.0},
        {"view_dead_seconds": 1.0},
        {"heartbeat_seconds": 5.0},
        {"heartbeat_ttl_seconds": 1.0},
    ],
)
def test_values_that_contradict_each_other_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(SettingsError, match=r"^Setting OWL_\w+ must .* OWL_\w+\.$"):
        Settings.load(**arguments)


def test_secrets_are_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://user:hunter2@host/name")
    monkeypatch.setenv("REDIS_URL", "redis://:hunter2@host")
    settings = Settings.load()

    assert settings.database_url is not None
    assert "hunter2" in settings.database_url.get_secret_value()
    for shown in (repr(settings), str(settings), settings.model_dump_json()):
        assert "hunter2" not in shown


def test_secrets_are_not_shown_in_the_traceback_of_an_error() -> None:
    secret = "hunter" + "2"
    with pytest.raises(SettingsError) as caught:
        Settings.load(database_url=[secret], redis_url={secret: 1})

    assert secret not in "".join(traceback.format_exception(caught.value))


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(ValidationError, match="frozen"):
        setattr(Settings.load(), "seed", 3)  # noqa: B010 - mypy would refuse an assignment


@given(st.dictionaries(st.sampled_from(sorted(Settings.model_fields)), st.text() | st.floats()))
def test_nothing_but_a_settings_error_comes_of_junk(junk: dict[str, Any]) -> None:
    try:
        Settings.load(**junk)
    except SettingsError as error:
        assert str(error).endswith((".", "?"))


def test_check_looks_at_the_arguments_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OWL_EXPLORATION_RATE", "nonsense")

    Settings.check({"seed": 3})
    with pytest.raises(SettingsError, match="SEED"):
        Settings.check({"seed": "three"})
