"""What a sweep asks: the model and traffic, fit for a search, and what its numbers depend on."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunebatch.cli import traffic
from tunebatch.cli.errors import CliError

if TYPE_CHECKING:
    from tunebatch.cli.session import Session
    from tunebatch.profile import Profile
    from tunebatch.report.progress import Progress
    from tunebatch.workload.spec import WorkloadSpec

_MOST_REQUESTS = 200_000  # of one run: more are not drawn in any time

# A run of conversations lasts so many times as long as its load takes to build up, and as long again to fade.
_BUILD_UPS = 4


def start_rate(asked: Profile, call: dict[str, Any], spec: WorkloadSpec, least_s: float) -> float | None:
    """Where the search begins, if the user said so.

    Raises:
        CliError: A run at it would take more requests than can be drawn.
    """
    rate = _rate(asked, call)
    drawn = asked.search.objective == "capacity" and spec.trace_file is None
    if rate is not None and drawn and rate * least_s > _MOST_REQUESTS:
        said = f"--start-rate {rate:g}" if call["start_rate"] else asked.said("workload", "rate_per_s")
        raise CliError(
            f"{said}: requests have to arrive for {least_s:.3g} s, which would be "
            f"{rate * least_s:.2g} of them; the highest rate to begin at is {_MOST_REQUESTS / least_s:.3g}"
        )
    return rate


def _rate(asked: Profile, call: dict[str, Any]) -> float | None:
    rate: float | None = call["start_rate"] or asked.workload.rate_per_s
    return rate


def judged_at_once(asked: Profile, call: dict[str, Any]) -> bool:
    """The SLO is held against runs in which all requests come at once."""
    return asked.search.objective == "throughput" and _rate(asked, call) is None


def identity(session: Session) -> dict[str, Any]:
    """What a number of the sweep depends on, so that none is compared with one of another kind."""
    from tunebatch.measure.environment import environment

    asked, model, machine = session.profile, session.executor.model_info, environment()
    return {
        "slo": asked.slo.texts(),
        "model": asked.model.name,
        "draft": asked.model.draft,
        **({"acceptance": list(asked.model.acceptance)} if asked.model.acceptance else {}),
        **{name: model.get(name) for name in ("dtype", "device", "attention_backend", "forward")},
        "block_size": asked.device.block_size,
        # What is found by itself differs a little from session to session.
        "num_blocks": asked.device.num_blocks,
        "max_slots": asked.device.max_slots,
        **({} if asked.device.overlap else {"overlap": False}),
        **({"graphs": True} if model.get("cuda_graphs", {}).get("graphs") else {}),
        "warmup": "first 10 %",
        **{name: machine[name] for name in ("torch", "cpu", "gpu")},
        "workload": session.workload().fingerprint(),
    }


def least_duration_s(session: Session) -> float:
    """How long requests have to arrive in every run of the search."""
    from statistics import mean

    from tunebatch.tune import sustained

    workload = session.workload()
    tokens = mean(request.max_tokens for request in workload.requests)
    return max(sustained.least_duration_s(session.profile.slo, tokens), _BUILD_UPS * workload.build_up_s)


def has_slo_of_other_traffic(asked: Profile, call: dict[str, Any]) -> bool:
    """The limits are a profile's, for traffic in whose place flags put one without arrivals: all but the
    first requests of that would wait too long by them."""
    from tunebatch.cli.traffic import workload_spec

    flags = call["flags"]
    workload = flags.get("workload", {})
    if workload.get("name") is None and workload.get("trace_file") is None:
        return False
    if flags.get("slo") or any(name.startswith("TUNEBATCH_SLO_") for name in call["environment"]):
        return False
    if asked.search.objective != "throughput" or not len(asked.slo):
        return False
    spec = workload_spec(asked)
    paced = spec.rate_per_s is not None or spec.burst_gap_s is not None
    return spec.arrivals == "closed" or (spec.arrivals == "burst" and not paced)


def checked_spec(asked: Profile, call: dict[str, Any]) -> WorkloadSpec:
    """The traffic, once it is known to have requests enough for the SLO, and a rhythm where it needs one."""
    from tunebatch.cli.before_loading import check_samples

    at_once, spec = judged_at_once(asked, call), traffic.workload_spec(asked)
    if asked.search.objective == "capacity" and not traffic.has_rhythm(spec):
        raise _no_rhythm(traffic.called(asked, spec))
    check_samples(asked, spec.num_requests, at_once)
    check_samples(asked, traffic.num_recorded(asked, spec), at_once, traffic.called(asked, spec))
    return spec


def _no_rhythm(name: str) -> CliError:
    return CliError(f"workload {name} has no arrivals to scale, so no capacity: use --objective throughput")


def opened(
    asked: Profile, spec: WorkloadSpec, call: dict[str, Any], progress: Progress | None = None
) -> Session:
    """The model with its traffic, once that is known to be fit for the search."""
    from tunebatch.cli.before_loading import check_samples
    from tunebatch.cli.session import Session

    session = Session.open(asked, spec, progress=progress)
    workload = session.workload()
    if asked.search.objective == "capacity" and workload.unit_arrivals_s is None:
        raise _no_rhythm(traffic.called(asked, spec))
    check_samples(asked, len(workload.requests), judged_at_once(asked, call), traffic.called(asked, spec))
    return session
