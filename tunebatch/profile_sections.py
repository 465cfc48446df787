"""The sections of a profile: their keys, what each may be, and what it is when nothing is said."""

from __future__ import annotations

import difflib
import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints

from tunebatch.engine.strategies import STRATEGIES, features_named, named
from tunebatch.profile_knobs import Ranges, parse_ranges
from tunebatch.workload.spec import ArrivalKind

Objective = Literal["capacity", "throughput"]
Sampler = Literal["auto", "gp", "tpe", "random"]
Backend = Literal["auto", "triton", "flashinfer", "flash-attn-3", "compiled", "packed", "reference"]

_TIME = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([a-z]*)\s*")
_TIME_UNITS = {"s": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}

# Samplers take 32 bits, and a search counts up from its seed for fresh traffic.
_LAST_SEED = 2**32 - 1 - 1000


def parse_time(value: Any) -> float:
    """Seconds from ``90s``, ``3m`` or ``1h``.

    Raises:
        ValueError: No number, no or an unknown unit, or not above 0.
    """
    found = _TIME.fullmatch(str(value))
    if found is None:
        raise ValueError(f"{value!r} is not a time; write it like 90s, 3m or 1h")
    number, unit = found.groups()
    if unit not in _TIME_UNITS:
        near = difflib.get_close_matches(unit, _TIME_UNITS, n=1, cutoff=0.1)
        raise ValueError(
            f"{value!r} has {f'the unknown unit {unit!r}' if unit else 'no unit'}; "
            f"did you mean {number}{near[0] if near else 's'}? (s, m, h)"
        )
    if float(number) <= 0:
        raise ValueError(f"{value!r} must be above 0; the nearest useful one is 1s")
    return float(number) * _TIME_UNITS[unit]


def _words(value: Any) -> Any:
    """``a,b`` from the environment or a flag."""
    return [word.strip() for word in value.split(",")] if isinstance(value, str) else value


def _strategies(value: Any) -> Any:
    """``all`` is every batching policy."""
    words = _words(value)
    if not isinstance(words, list):
        return words
    if not words:
        raise ValueError(f"no strategy; at least one of {', '.join(STRATEGIES)}")
    return named(words)


def _features(value: Any) -> Any:
    """``all`` is every feature, and ``none`` is none."""
    words = _words(value)
    return features_named(map(str, words)) if isinstance(words, list) else words


def _rates(value: Any) -> Any:
    """``0.8`` or ``0.8,0.7,0.6``, as a number, a text or a list."""
    words = _words(value)
    try:
        rates = [float(_number(word)) for word in (words if isinstance(words, list) else [words])]
    except (TypeError, ValueError):
        raise ValueError("is no rate; write it like 0.8, or 0.8,0.7,0.6 for draft after draft") from None
    for rate in rates:
        if not 0.0 <= rate <= 1.0:
            raise ValueError(f"{rate:g} is no probability; the nearest is {min(max(rate, 0.0), 1.0):g}")
    if not rates:
        raise ValueError("is empty; write it like 0.8")
    return tuple(rates)


def _number(value: Any) -> Any:
    if isinstance(value, bool):
        raise ValueError(f"{str(value).lower()} is not a number")
    return value


def _file(value: str) -> str:
    """An empty name would be the working folder."""
    if not value.strip():
        raise ValueError("is empty; name a file, or leave it out")
    return value


Integer = Annotated[int, BeforeValidator(_number)]
Number = Annotated[float, BeforeValidator(_number)]
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]
Length = Annotated[int | str, BeforeValidator(_number)]


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class ModelSection(Section):
    """Which model, and how it is computed; ``compile`` lets torch.compile do it if that is faster."""

    name: Text = "bundled"
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    backend: Backend = "auto"
    compile: bool = False
    draft: Text = "auto"
    acceptance: Annotated[tuple[float, ...], BeforeValidator(_rates)] = ()


class WorkloadSection(Section):
    """A named workload, changed by whatever else is given; or an explicit one."""

    name: str | None = None
    arrivals: ArrivalKind | None = None
    rate_per_s: Annotated[Number, Field(gt=0)] | None = None
    burstiness: Annotated[Number, Field(gt=0)] | None = None
    prompt_tokens: Length | None = None
    output_tokens: Length | None = None
    prefix_tokens: Length | None = None
    prefixes: Annotated[Integer, Field(ge=1)] | None = None
    prefix_skew: Annotated[Number, Field(ge=0, le=10)] | None = None
    turns: Length | None = None
    cancel: Annotated[Number, Field(ge=0, le=1)] | None = None
    cancel_after_s: Annotated[Number, Field(gt=0)] | None = None
    requests: Annotated[Integer, Field(ge=1)] | None = None
    seed: Annotated[Integer, Field(ge=0, le=_LAST_SEED)] | None = None
    concurrency: Annotated[Integer, Field(ge=1)] | None = None
    think_time_s: Annotated[Number, Field(ge=0)] | None = None
    burst_size: Annotated[Integer, Field(ge=1)] | None = None
    burst_gap_s: Annotated[Number, Field(gt=0)] | None = None
    trace_file: Annotated[str, AfterValidator(_file)] | None = None
    trace_format: str | None = None
    trace_start: Annotated[Integer, Field(ge=0)] | None = None
    trace_limit: Annotated[Integer, Field(ge=1)] | None = None
    max_context: Annotated[Integer, Field(ge=2)] | None = None
    clip: bool | None = None
    ignore_eos: bool | None = None

    def given(self) -> dict[str, Any]:
        """What was asked for, without what was left open."""
        return {name: value for name, value in self if value is not None}


class SearchSection(Section):
    """What is searched, and how long.

    Attributes:
        features: Those that the search switches on and off.
        knobs: The values that knobs may have; the others have the ranges of the strategies' table.
        sampler: Who suggests the next trial: a Gaussian process, tree-structured Parzen estimators, or
            chance; ``auto`` is ``gp``, and for long searches, where that gets slow, ``tpe``.
    """

    strategies: Annotated[list[str], BeforeValidator(_strategies)] = Field(
        default_factory=lambda: list(STRATEGIES)
    )
    features: Annotated[list[str], BeforeValidator(_features)] = Field(default_factory=list)
    knobs: Annotated[Ranges, BeforeValidator(parse_ranges)] = Field(default_factory=dict)
    objective: Objective = "capacity"
    sampler: Sampler = "auto"
    trials: Integer = Field(40, ge=1)
    time: Annotated[float, BeforeValidator(parse_time)] = 180.0
    seed: Integer = Field(0, ge=0, le=_LAST_SEED)
    confirm: Integer = Field(5, ge=1)


class DeviceSection(Section):
    """How much of the device the KV cache may take, and what it costs, in whatever currency.

    Attributes:
        graphs: Steps are captured as CUDA graphs, where there is CUDA.
        overlap: The host plans a step while the device computes the one before, where there is CUDA.
    """

    utilization: Number = Field(0.9, gt=0, le=1)
    num_blocks: Annotated[Integer, Field(ge=1)] | None = None
    block_size: Integer = Field(16, ge=1)
    max_slots: Integer = Field(64, ge=1)
    graphs: bool = True
    overlap: bool = True
    price_per_hour: Annotated[Number, Field(gt=0)] | None = None
