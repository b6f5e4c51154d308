"""Every setting with its environment names, default and bounds; read nowhere else."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, Final, Self

from pydantic import (
    AliasChoices,
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    model_validator,
)
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from owl_celery.errors import SettingsError

# The one variable that is not unset when it is empty: it hides all GPUs.
SAYS_IF_EMPTY: Final = "CUDA_VISIBLE_DEVICES"


def _contract(name: str) -> AliasChoices:
    """Environment names of a setting that is known by its bare name too; ``OWL_...`` wins."""
    return AliasChoices(f"OWL_{name}", name)


def _names_in(value: object) -> object:
    """Read names that are separated by commas, as the environment has them."""
    if not isinstance(value, str):
        return value
    return tuple(name for part in value.split(",") if (name := part.strip()))


class Settings(BaseSettings):
    """Settings of one application, read once at the edge and passed down.

    Sources, strongest first: arguments, ``OWL_...`` environment variables, the bare environment
    names of the first nine, ``app.conf.owl_...``, defaults.

    Parameters
    ----------
    enable_continuous_learning
        False: the router declines and Celery routes; nothing is learned.
    continuous_learning_storage_path
        Folder of the SQLite database; unused with ``database_url``.
    exploration_rate
        Width of the noise on uncertain service times, 0-1; it fades as samples arrive.
    learning_rate
        Step of the value weights, in (0, 1].
    enable_reinforcement_learning
        False: no prices and no exploration, only learned expected completion time.
    enable_metrics, metrics_host, metrics_port
        Whether and where ``owl serve`` exports Prometheus metrics; the host is a name or an
        address, ``0.0.0.0`` for all of IPv4.
    database_url
        SQLAlchemy address, such as ``postgresql://user:password@host/name``; SQLite when unset.
    redis_url
        Redis for load and learning state, ``redis://``, ``rediss://``, ``unix://`` or
        ``sentinel://``; by default the broker, when that is Redis.
    namespace
        Prefix of our Redis keys; producers and workers of one application share it. By default
        the Celery application's name.
    policy
        Name of the routing policy; see ``owl_celery.policies``.
    seed
        Seed of the policy's random choices; unset for a different one in each process.
    outcome_retention_count
        Raw outcomes kept in the database, >= 0; aggregates are kept for ever.
    stream_max_length
        Outcomes kept on the Redis stream while no controller reads them.
    embed_controller
        Whether workers may host the controller; False leaves it to ``celery owl serve``.
    view_stale_seconds, view_dead_seconds
        Age of the load view at which routing falls back one step, and to Celery's own route.
    sync_busy_seconds, sync_idle_seconds
        Pause between two syncs of a producer that publishes, and of one that does not.
    heartbeat_seconds, heartbeat_ttl_seconds
        Pause between heartbeats of a worker, and how long one counts.
    tick_seconds, lease_seconds
        Pause between two rounds of the controller, and how long its lease lasts unrenewed.
    steal
        Whether the controller gives tasks that wait in one queue to an idle worker of another.
    rescue
        Whether the controller moves away what waits for a dead worker and what it held, and a
        worker takes back what one before it held.
    max_worker_losses
        Times that a worker, or the process of it that runs a task, may die while it holds the task,
        before it fails; 0 for no limit.
    out_of_memory_errors
        Classes of exceptions that mean a lack of memory, with or without their module; in the
        environment separated by commas.
    drain_timeout_seconds
        How long a GPU worker that is asked to stop goes on with what waits in its queue before
        the rest moves to the default queue; 0 moves it at once.
    api_host, api_port
        Where ``owl serve`` answers HTTP; loopback unless ``api_token`` is set.
    api_token
        Secret of the API, 16 characters or more; without it nothing can be changed by HTTP.
    worker_queue
        Queue that this worker alone serves; set by ``celery owl worker``, empty for plain workers.
    worker_concurrency
        Tasks that it runs at a time.
    gpu_model, gpu_uuid, gpu_simulated
        GPU behind ``worker_queue``; model ``cpu`` and no UUID for CPU processes.
    worker_owner
        Who claims GPU and queue; one name for all workers of a ``celery owl worker``.
    cuda_visible_devices
        GPUs that ``celery owl worker`` may use, by index or UUID, up to a ``-1``; all when unset,
        none when empty.
    """

    model_config = SettingsConfigDict(
        env_prefix="OWL_",
        env_ignore_empty=True,
        frozen=True,
        extra="forbid",
        populate_by_name=True,
        allow_inf_nan=False,
        # Some values are secret, and a traceback would show them.
        hide_input_in_errors=True,
    )

    enable_continuous_learning: Annotated[
        bool, Field(validation_alias=_contract("ENABLE_CONTINUOUS_LEARNING"))
    ] = True
    continuous_learning_storage_path: Annotated[
        Path, Field(validation_alias=_contract("CONTINUOUS_LEARNING_STORAGE_PATH"))
    ] = Path("/app/data/continuous_learning")
    exploration_rate: Annotated[
        float, Field(ge=0, le=1, validation_alias=_contract("EXPLORATION_RATE"))
    ] = 0.2
    learning_rate: Annotated[
        float, Field(gt=0, le=1, validation_alias=_contract("LEARNING_RATE"))
    ] = 0.1
    enable_reinforcement_learning: Annotated[
        bool, Field(validation_alias=_contract("ENABLE_REINFORCEMENT_LEARNING"))
    ] = True
    enable_metrics: Annotated[bool, Field(validation_alias=_contract("ENABLE_METRICS"))] = True
    metrics_port: Annotated[
        int, Field(ge=1, le=65535, validation_alias=_contract("METRICS_PORT"))
    ] = 9090
    database_url: Annotated[SecretStr | None, Field(validation_alias=_contract("DATABASE_URL"))] = (
        None
    )
    redis_url: Annotated[SecretStr | None, Field(validation_alias=_contract("REDIS_URL"))] = None

    namespace: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{0,100}$")] = ""
    metrics_host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    policy: str = "q_learning"
    seed: int | None = None
    outcome_retention_count: Annotated[int, Field(ge=0)] = 100_000
    stream_max_length: Annotated[int, Field(ge=1_000)] = 100_000
    embed_controller: bool = True
    view_stale_seconds: Annotated[float, Field(gt=0)] = 2.0
    view_dead_seconds: Annotated[float, Field(gt=0)] = 10.0
    sync_busy_seconds: Annotated[float, Field(gt=0, le=1)] = 0.03
    sync_idle_seconds: Annotated[float, Field(gt=0, le=5)] = 1.0
    heartbeat_seconds: Annotated[float, Field(gt=0, le=5)] = 1.0
    heartbeat_ttl_seconds: Annotated[float, Field(ge=1, le=60)] = 5.0
    tick_seconds: Annotated[float, Field(gt=0, le=1)] = 0.03
    lease_seconds: Annotated[float, Field(ge=1, le=60)] = 5.0
    steal: bool = True
    rescue: bool = True
    max_worker_losses: Annotated[int, Field(ge=0)] = 3
    out_of_memory_errors: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_names_in)] = ()
    drain_timeout_seconds: Annotated[float, Field(ge=0, le=86_400)] = 30.0
    api_host: Annotated[str, Field(min_length=1, max_length=255)] = "127.0.0.1"
    api_port: Annotated[int, Field(ge=1, le=65535)] = 8080
    api_token: Annotated[SecretStr, Field(min_length=16, max_length=1024)] | None = None

    worker_queue: Annotated[str, Field(max_length=255)] = ""
    worker_concurrency: Annotated[int, Field(ge=1, le=1024)] = 1
    gpu_model: Annotated[str, Field(max_length=255)] = ""
    gpu_uuid: Annotated[str, Field(max_length=255)] = ""
    gpu_simulated: bool = False
    worker_owner: str = ""
    cuda_visible_devices: Annotated[
        str | None, Field(validation_alias=_contract("CUDA_VISIBLE_DEVICES"))
    ] = None

    @model_validator(mode="after")
    def _check_pairs(self) -> Self:
        """Refuse pairs of values that contradict each other."""
        if self.view_dead_seconds < self.view_stale_seconds:
            raise ValueError(
                "Setting OWL_VIEW_DEAD_SECONDS must not be below OWL_VIEW_STALE_SECONDS."
            )
        if self.heartbeat_ttl_seconds < 2 * self.heartbeat_seconds:
            raise ValueError(
                "Setting OWL_HEARTBEAT_TTL_SECONDS must be at least twice OWL_HEARTBEAT_SECONDS."
            )
        return self

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Leave out ``.env`` files and secret folders: arguments and the environment only."""
        return init_settings, env_settings

    @classmethod
    def load(cls, conf: Mapping[str, Any] | None = None, **arguments: Any) -> Self:
        """Read the settings of one application.

        Parameters
        ----------
        conf
            The Celery configuration; its ``owl_...`` keys are used where neither an argument nor
            the environment says otherwise.
        arguments
            Field values that win over everything else.

        Raises
        ------
        SettingsError
            When a value cannot be used; the message names the setting and the cure.

        """
        conf = {} if conf is None else conf
        named = {str(key)[4:] for key in conf if str(key).startswith("owl_")}
        # By ``get``, not by iteration alone: Celery may keep them under another namespace.
        in_conf = {
            field: value
            for field in named | set(cls.model_fields)
            if (value := conf.get(f"owl_{field}")) is not None
        }
        with_empty = EnvSettingsSource(cls, env_ignore_empty=False)()
        merged: dict[str, Any] = {
            **InitSettingsSource(cls, in_conf)(),
            **{name: value for name, value in with_empty.items() if name.endswith(SAYS_IF_EMPTY)},
            **EnvSettingsSource(cls)(),
            **InitSettingsSource(cls, arguments)(),
        }
        try:
            return cls(**merged)
        except ValidationError as error:
            raise SettingsError(_sentence(error)) from error

    @classmethod
    def check(cls, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments that cannot be used, whatever the environment says.

        Raises
        ------
        SettingsError
            When a name is unknown or a value is out of bounds.

        """
        try:
            # Into a bare instance: the constructor of settings would read the environment.
            cls.__pydantic_validator__.validate_python(
                dict(arguments), self_instance=cls.__new__(cls), by_name=True, by_alias=False
            )
        except ValidationError as error:
            raise SettingsError(_sentence(error)) from error


def bare_names() -> frozenset[str]:
    """Environment variables that are settings without the prefix ``OWL_``."""
    return frozenset(
        str(choice)
        for field in Settings.model_fields.values()
        if isinstance(field.validation_alias, AliasChoices)
        for choice in field.validation_alias.choices
        if not str(choice).startswith("OWL_")
    )


def _sentence(error: ValidationError) -> str:
    """Say the first complaint in a sentence that names the setting; values stay unsaid."""
    first = error.errors(include_url=False, include_input=False)[0]
    message = first["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if not first["loc"]:
        return message
    name = str(first["loc"][0])
    if first["type"] == "extra_forbidden":
        return _unknown(name)
    field = name.lower().removeprefix("owl_")
    names = [f"OWL_{field.upper()}", f"app.conf.owl_{field}"]
    if Settings.model_fields[field].validation_alias is not None:
        names.insert(0, field.upper())
    return f"Setting {names[0]} (or {', or '.join(names[1:])}) {message}."


def _unknown(name: str) -> str:
    """Say that there is no such setting, and which one may be meant."""
    near = get_close_matches(name, Settings.model_fields, n=1)
    hint = f"did you mean {near[0]!r}?" if near else "see owl_celery.Settings for those there are."
    return f"Unknown setting {name!r}; {hint}"
