"""The file that takes what one site has learned to another; ``docs/transfer.md`` describes it."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from typing import Annotated, Any, Final, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from owl_celery.errors import PriorError
from owl_celery.prior import LoadPrior, PairPrior, Prior
from owl_celery.sanity import MAX_BYTES, is_text
from owl_celery.types import MAX_SIZE, MIN_SIZE
from owl_celery.wire import MAX_NAME_LENGTH, MAX_SECONDS

FORMAT: Final = "owl-celery-prior"
VERSION: Final = 1
MAX_COUNT: Final = 10**12
MAX_ROWS: Final = 200_000
ROWS_NAMED: Final = 5
"""Bad rows that an error names; the others are counted."""

Row = TypeVar("Row", PairPrior, LoadPrior)


def _checked_name(name: str) -> str:
    if not is_text(name):
        raise ValueError("has a letter that no database can hold")
    return name


Name = Annotated[
    str, Field(min_length=1, max_length=MAX_NAME_LENGTH), AfterValidator(_checked_name)
]
Count = Annotated[int, Field(ge=0, le=MAX_COUNT)]
Bytes = Annotated[int, Field(gt=0, le=MAX_BYTES)]


class _Row(BaseModel):
    """Ignores what a newer release adds, and takes no text for a number."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _Pair(_Row):
    task_type: Name
    gpu_model: Name
    seconds: Annotated[FiniteFloat, Field(gt=0, le=MAX_SECONDS)] | None = None
    successes: Count = 0
    mean_size: Annotated[FiniteFloat, Field(ge=MIN_SIZE, le=MAX_SIZE)] = 1.0
    failure_probability: Annotated[FiniteFloat, Field(ge=0, le=1)] = 0.0
    tries: Count = 0
    needed_memory_bytes: Bytes | None = None
    peak_memory_bytes: Bytes | None = None
    standard_deviation_seconds: Annotated[FiniteFloat, Field(ge=0, le=MAX_SECONDS)] | None = None


class _Load(_Row):
    model: Name
    seconds: Annotated[FiniteFloat, Field(ge=0, le=MAX_SECONDS)]
    count: Annotated[int, Field(ge=1, le=MAX_COUNT)]


def encode_prior(prior: Prior, about: Mapping[str, str]) -> str:
    """Write the file: one row a line; ``about`` says where it comes from, for people."""
    head = json.dumps({"format": FORMAT, "version": VERSION, **about}, indent=1)
    parts = [
        f'{head[:-2]},\n "pairs": [{_lines(prior.pairs)}]',
        f'"loads": [{_lines(prior.loads)}]',
    ]
    return ",\n ".join(parts) + "\n}\n"


def _lines(rows: Sequence[PairPrior] | Sequence[LoadPrior]) -> str:
    lines = [
        json.dumps(
            {
                field.name: value
                for field in fields(row)
                if (value := getattr(row, field.name)) is not None
            },
            allow_nan=False,
        )
        for row in rows
    ]
    return "".join(f"\n  {line}{',' * (line is not lines[-1])}" for line in lines)


def decode_prior(text: str) -> Prior:
    """Read such a file.

    Raises
    ------
    PriorError
        When it is none, of a newer version, or a row makes no sense; the rows are named.

    """
    try:
        document = json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise PriorError(
            f"It is no JSON: {error.msg} in line {error.lineno}, column {error.colno}."
        ) from error
    except (ValueError, RecursionError) as error:
        raise PriorError(f"It is no JSON: {error}.") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        raise PriorError(
            f'It is no file of learned times: "format" must be "{FORMAT}"; '
            "celery owl export writes one."
        )
    version = document.get("version")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise PriorError(f'"version" must be a whole number from 1 on, and it is {version!r}.')
    if version > VERSION:
        raise PriorError(
            f"It is of version {version}, and this release reads up to {VERSION}: upgrade "
            "owl_celery here, or export with an older release."
        )
    pairs = _rows(document, "pairs", _Pair, PairPrior, lambda p: f"{p.task_type} on {p.gpu_model}")
    loads = _rows(document, "loads", _Load, LoadPrior, lambda load: load.model)
    return Prior(tuple(pairs), tuple(loads))


def _rows(
    document: Mapping[str, Any],
    name: str,
    schema: type[_Row],
    kind: type[Row],
    called: Callable[[Row], str],
) -> list[Row]:
    rows = document.get(name, [])
    if not isinstance(rows, list):
        raise PriorError(f'"{name}" must be a list of rows.')
    if len(rows) > MAX_ROWS:
        raise PriorError(f'"{name}" has {len(rows):,} rows, and {MAX_ROWS:,} are allowed.')
    read: dict[str, Row] = {}
    problems: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            value = kind(**schema.model_validate(row).model_dump())
        except ValidationError as error:
            problems.append(f"{_named(name, number, row)}: {_problem(error)}")
            continue
        problem = _contradiction(value)
        if called(value) in read:
            problem = "stands there twice"
        if problem:
            problems.append(f"{_named(name, number, row)} {problem}")
        read[called(value)] = value
    if problems:
        shown = problems[:ROWS_NAMED]
        if len(problems) > ROWS_NAMED:
            shown.append(f"and {len(problems) - ROWS_NAMED} rows more")
        raise PriorError(f"{'; '.join(shown)}.")
    return list(read.values())


def _contradiction(row: PairPrior | LoadPrior) -> str:
    if isinstance(row, PairPrior) and (row.seconds is None) != (row.successes == 0):
        return "needs both seconds and successes, or neither"
    return ""


def _named(name: str, number: int, row: object) -> str:
    """Row and what it is about, as far as it says so."""
    texts = []
    if isinstance(row, dict):
        values = [row.get(key) for key in ("task_type", "gpu_model", "model")]
        texts = [value[:60] for value in values if isinstance(value, str)]
    about = f" ({' on '.join(texts)})" if texts else ""
    return f"Row {number} of {name}{about}"


def _problem(error: ValidationError) -> str:
    first = error.errors(include_url=False)[0]
    where = ".".join(str(part) for part in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "missing":
        return f"{where} is missing"
    return f"{where or 'it'}: {message}, and it is {first['input']!r:.60}"


def _refuse(constant: str) -> float:
    raise ValueError(f"{constant} is no number")
