"""From a profile's workload section to a description of traffic."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebatch.cli.errors import CliError

if TYPE_CHECKING:
    from tunebatch.profile import Profile
    from tunebatch.workload.spec import WorkloadSpec

_RENAMED = {
    "requests": "num_requests",
    "prompt_tokens": "prompt_lengths",
    "output_tokens": "output_lengths",
}


def workload_spec(profile: Profile) -> WorkloadSpec:
    """The traffic that the profile describes: a named workload, changed by what else is given.

    Raises:
        CliError: An unknown name or an impossible value.
    """
    from tunebatch.profile import nearest
    from tunebatch.workload.named import NAMED
    from tunebatch.workload.spec import WorkloadSpec

    given = profile.workload.given()
    name = given.pop("name", None)
    if name is not None and name not in NAMED:
        raise CliError(f"[workload] name = {name!r}: unknown workload{nearest(name, NAMED)}")
    if name is not None and "trace_file" in given:
        raise CliError(f"[workload] has both name = {name!r} and a trace_file; leave out one of them")
    try:
        values = {_RENAMED.get(key, key): _value(key, value) for key, value in given.items()}
        if name is not None:
            return dataclasses.replace(NAMED[name], **values)
        if "trace_file" in values:
            values.setdefault("arrivals", "trace")
        return WorkloadSpec(name=_name(values), **values)
    except ValueError as error:
        raise CliError(f"[workload] {error}") from None


def _value(key: str, value: Any) -> Any:
    from tunebatch.workload.lengths import parse_length

    if key in ("prompt_tokens", "output_tokens"):
        return parse_length(str(value), key)
    return Path(value) if key == "trace_file" else value


def _name(values: dict[str, Any]) -> str:
    return values["trace_file"].stem if "trace_file" in values else "custom"


def has_own_schedule(profile: Profile) -> bool:
    """The user chose when requests come; a named workload's rate is only where a search begins."""
    asked = profile.workload
    own = asked.rate_per_s, asked.trace_file, asked.concurrency
    return any(value is not None for value in own) or asked.arrivals in ("closed", "burst")
