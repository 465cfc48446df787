"""From a profile's workload section to a description of traffic."""

from __future__ import annotations

import dataclasses
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tunebatch.cli.errors import CliError

if TYPE_CHECKING:
    from tunebatch.profile import Profile
    from tunebatch.workload.spec import WorkloadSpec
    from tunebatch.workload.traces import TraceRow

_RENAMED = {
    "requests": "num_requests",
    "prompt_tokens": "prompt_lengths",
    "output_tokens": "output_lengths",
    "prefix_tokens": "prefix_lengths",
    "prefixes": "num_prefixes",
}
_TRAFFIC = {"arrivals", "prompt_tokens", "output_tokens", "trace_file"}  # what makes a workload of one's own
_UNSAID = "quickstart"
_PACED = ("poisson", "gamma", "constant")
_ANY_RATE = 1.0  # of arrivals that are only used at another one


def workload_spec(profile: Profile) -> WorkloadSpec:
    """The traffic that the profile describes: a named workload, changed by what else is given, or a trace.

    A trace is read as far as the SLO's percentiles need, unless its requests are counted. One without
    arrivals gets Poisson ones, which a rate can be chosen for. Where no traffic is described at all it is
    that of the workload ``quickstart``.

    Raises:
        CliError: An unknown name, an impossible value, or a trace whose first row cannot be read.
    """
    from tunebatch.profile import nearest
    from tunebatch.workload.named import NAMED
    from tunebatch.workload.spec import WorkloadSpec
    from tunebatch.workload.traces import TRACE_FORMATS, TraceError

    given = profile.workload.given()
    name = given.pop("name", None)
    if name is not None and name not in NAMED and name not in TRACE_FORMATS:
        raise CliError(
            f"{profile.said('workload', 'name')}: unknown workload{nearest(name, [*NAMED, *TRACE_FORMATS])}"
        )
    if name in TRACE_FORMATS:
        _is_format(profile, name, given)
        name = None
    trace_format = given.get("trace_format")
    if trace_format is not None and trace_format not in TRACE_FORMATS:
        said = profile.said("workload", "trace_format")
        raise CliError(f"{said}: unknown format{nearest(trace_format, TRACE_FORMATS)}")
    if name is not None and "trace_file" in given:
        raise CliError(
            f"{profile.said('workload', 'name')}: its requests are not those of "
            f"{profile.said('workload', 'trace_file')}; leave out one of them, or name the trace's format: "
            f"{', '.join(TRACE_FORMATS)}"
        )
    try:
        values = {_RENAMED.get(key, key): _value(profile, key, value) for key, value in given.items()}
        if name is None and not _TRAFFIC & given.keys():
            name = _UNSAID
        if name is not None:
            return dataclasses.replace(NAMED[name], **values)
        if "trace_file" in values:
            notes = _recorded_or_poisson(values)
            enough = _enough(profile)
            if enough is not None and not {"trace_limit", "num_requests"} & values.keys():
                values["num_requests"] = enough
                notes.append(
                    f"of the trace at most {enough} rows, which is what the SLO needs; --requests takes more"
                )
            values["notes"] = tuple(notes)
        if profile.search.objective == "capacity" and values.get("arrivals", "poisson") in _PACED:
            values.setdefault("rate_per_s", _ANY_RATE)  # a capacity is searched at rates of its own
        return WorkloadSpec(name=_name(values), **values)
    except TraceError as error:
        raise CliError(str(error)) from None
    except ValueError as error:
        raise refused(profile, error) from None


def refused(profile: Profile, error: ValueError) -> CliError:
    """What is wrong with a description of traffic, in the words of the profile, after where it was said."""
    problem = re.sub(r"^workload \S+: ", "", str(error))
    for key, field in _RENAMED.items():
        problem = re.sub(rf"\b{field}\b", key, problem)
    return CliError(f"{_whence(profile, problem)}: [workload] {problem}")


def _whence(profile: Profile, problem: str) -> str:
    """Where the keys come from that a problem names, or without one of these all that were given."""
    given = profile.workload.given()
    named = [key for key in given if re.search(rf"\b{key}\b", problem)]
    places = {profile.origin.get(("workload", key), profile.source) for key in named or given}
    return ", ".join(sorted(places)) or profile.source


def checked_spec(profile: Profile) -> WorkloadSpec:
    """As ``workload_spec``, and its trace, if there is one, has been read: before a model is loaded.

    Raises:
        CliError: Of a broken trace it names the file, the line and what is wrong there.
    """
    spec = workload_spec(profile)
    num_recorded(profile, spec)
    return spec


def num_recorded(profile: Profile, spec: WorkloadSpec) -> int | None:
    """Requests that the trace has for the description; None without a trace.

    Raises:
        CliError: See ``checked_spec``.
    """
    rows = recorded(profile, spec)
    return None if rows is None else len(rows)


def recorded(profile: Profile, spec: WorkloadSpec) -> list[TraceRow] | None:
    """The trace's requests for the description; None without a trace.

    Raises:
        CliError: See ``checked_spec``.
    """
    from tunebatch.cli.tokenizer import text_to_ids
    from tunebatch.workload.recorded import recorded_rows

    if spec.trace_file is None:
        return None
    try:
        return recorded_rows(spec, text_to_ids(profile.model.name), spec.seed, notes=[])
    except ValueError as error:
        raise CliError(str(error)) from None


def refuse_rate(rate: float | None, profile: Profile, spec: WorkloadSpec) -> None:
    """Refuses, before a model is loaded, a rate for traffic that has no rhythm to play at it.

    Raises:
        CliError: It comes in a closed loop, or all at once. Of a trace only its rows could tell.
    """
    if rate is not None and not has_rhythm(spec):
        how = "in a closed loop" if spec.arrivals == "closed" else "all at once"
        raise CliError(
            f"--rate {rate:g}: the requests of {called(profile, spec)} come {how}; leave it out, or give "
            "them an arrival process, with [workload] arrivals = 'poisson'"
        )


def called(profile: Profile, spec: WorkloadSpec) -> str:
    """The traffic as its user knows it: by its trace, the profile that describes it, or its name."""
    if spec.trace_file is not None:
        return str(spec.trace_file)
    changed = profile.workload.given().keys() - {"name", "seed", "requests"}
    return f"{spec.name} ({_whence(profile, ' '.join(changed))})" if changed else spec.name


def has_rhythm(spec: WorkloadSpec) -> bool:
    """Whether the traffic can be played at another rate; of a trace only its rows could tell."""
    if spec.arrivals == "burst":
        paced = spec.rate_per_s is not None or spec.burst_gap_s is not None
        whole = spec.num_requests if spec.num_requests is not None else math.inf
        return paced and spec.burst_size is not None and spec.burst_size < whole
    return spec.arrivals != "closed"


def needed_requests(profile: Profile, at_once: bool) -> list[tuple[str, int]]:
    """Requests that each limit's statistic needs: each gives one sample at most, and in the warm-up none.

    Args:
        at_once: All requests come at once, so that there is no warm-up.
    """
    from tunebatch.measure.limits import QUANTILES
    from tunebatch.measure.percentiles import samples_needed
    from tunebatch.measure.warmup import requests_for

    return [
        (limit.name, requests_for(samples_needed(QUANTILES[limit.statistic]), at_once))
        for limit in profile.slo
        if limit.statistic in QUANTILES
    ]


def _is_format(profile: Profile, name: str, given: dict[str, Any]) -> None:
    said = profile.said("workload", "name")
    if "trace_file" not in given:
        raise CliError(f"{said}: {name} is a format of traces: give its file with --trace-file FILE")
    if given.setdefault("trace_format", name) != name:
        other = profile.said("workload", "trace_format")
        raise CliError(f"{said}: is another format than {other}; leave out one of them")


def _enough(profile: Profile) -> int | None:
    """Requests for the SLO's percentiles, and some to spare for those without a second token."""
    needed = max((count for _, count in needed_requests(profile, at_once=False)), default=None)
    return None if needed is None else -(-needed * 6 // 5)


def _recorded_or_poisson(values: dict[str, Any]) -> list[str]:
    """Sets the arrivals of a trace, where they were left open; returns what is to be told about it."""
    from tunebatch.workload.traces import has_arrivals

    if "arrivals" in values:
        return []
    if has_arrivals(values["trace_file"], values.get("trace_format")):
        values["arrivals"] = "trace"
        return []
    values["arrivals"] = "poisson"
    values.setdefault("rate_per_s", _ANY_RATE)
    return ["no arrivals in the trace: Poisson ones at the rate of --rate; all at once without a rate"]


def _value(profile: Profile, key: str, value: Any) -> Any:
    from tunebatch.workload.lengths import parse_length

    if key in ("prompt_tokens", "output_tokens", "prefix_tokens", "turns"):
        try:
            return parse_length(str(value), key)
        except ValueError as error:
            problem = str(error).removeprefix(f"{key} {str(value)!r}: ")
            raise CliError(f"{profile.said('workload', key)}: {problem}") from None
    return Path(value) if key == "trace_file" else value


def _name(values: dict[str, Any]) -> str:
    return values["trace_file"].stem if "trace_file" in values else "custom"


def has_own_schedule(profile: Profile, spec: WorkloadSpec) -> bool:
    """The user chose when requests come; a named workload's rate is only where a search begins."""
    asked = profile.workload
    own = asked.rate_per_s, asked.concurrency
    chosen = asked.arrivals in ("closed", "burst") or spec.arrivals == "trace"
    return chosen or any(value is not None for value in own)


def comes_at_once(
    profile: Profile, spec: WorkloadSpec, rate: float | None, rows: list[TraceRow] | None
) -> bool:
    """Whether all requests of a run come at once, as ``Session.as_asked`` has them.

    Args:
        rate: At which they are played, or None for their own schedule.
        rows: Those of the trace, if there is one.
    """
    from tunebatch.workload.traces import mean_rate_per_s

    if rate is not None:
        return False
    if not has_own_schedule(profile, spec):
        return True
    if spec.arrivals == "trace":
        return mean_rate_per_s([row.arrival_s or 0.0 for row in rows or ()]) is None
    return spec.arrivals != "closed" and not has_rhythm(spec)
