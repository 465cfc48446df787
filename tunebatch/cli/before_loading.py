"""What is refused before a model is loaded for it, because no model could mend it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tunebatch.cli.errors import CliError
from tunebatch.cli.traffic import called, comes_at_once, needed_requests, recorded

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tunebatch.profile import Profile
    from tunebatch.workload.spec import WorkloadSpec


def check_samples(profile: Profile, num_requests: int | None, at_once: bool, trace: str = "") -> None:
    """Refuses what could never be judged.

    Args:
        num_requests: None where only the trace knows.
        at_once: How they come, see ``needed_requests``.
        trace: The trace that has no more of them, if it was read.

    Raises:
        CliError: A percentile needs more requests than there are.
    """
    if problem := _samples_problem(profile, num_requests, at_once, trace):
        raise CliError(problem)


def untold(profile: Profile, spec: WorkloadSpec, rate: float | None) -> str:
    """Why one run of the traffic, as `run` and `compare` serve it, could not tell the SLO; empty where it
    may."""
    rows = recorded(profile, spec)
    at_once = comes_at_once(profile, spec, rate, rows)
    drawn = _samples_problem(profile, spec.num_requests, at_once)
    num_recorded = None if rows is None else len(rows)
    return drawn or _samples_problem(profile, num_recorded, at_once, called(profile, spec))


def _samples_problem(profile: Profile, num_requests: int | None, at_once: bool, trace: str = "") -> str:
    """What ``check_samples`` refuses, in words; empty where there is nothing to refuse."""
    from tunebatch.report.why import samples_problem, warmup_aside

    needed = needed_requests(profile, at_once)
    problem = None if num_requests is None else samples_problem(needed, num_requests, at_once)
    if problem is None or not trace:
        return problem or ""
    name, count = max(needed, key=lambda one: one[1])
    return (
        f"{name} needs at least {count} requests to be told{warmup_aside(at_once)}, and {trace} gives "
        f"{num_requests}; "
        "use a longer trace or a lower percentile"
    )


def check_draft(profile: Profile, strategies: Iterable[str], features: Iterable[str] = ()) -> None:
    """Refuses a draft model that is not there, and drafting without one.

    Args:
        features: Those that a search adds.

    Raises:
        CliError: See there.
    """
    model = profile.model
    folder = Path(model.draft).expanduser()
    is_local = folder.is_absolute() or model.draft.startswith((".", "~"))
    if is_local and not (folder / "config.json").is_file():
        raise CliError(
            f"--draft {model.draft}: no folder with the config.json of a Hugging Face model; give a local "
            "path, a hub id (owner/name) or a named shape"
        )
    if model.draft != "auto" or model.name == "bundled":
        return
    lacks = f"needs a draft model with the tokenizer of {model.name}: name it with --draft; or"
    for name in strategies:
        if "draft" in name.split("+"):
            raise CliError(f"strategy {name} {lacks} draft without one, with +ngram")
    if "draft" in features:
        others = [feature for feature in features if feature != "draft"]
        raise CliError(f"feature draft {lacks} leave it out, with --features {','.join(others) or 'none'}")
