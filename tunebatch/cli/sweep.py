"""``tunebatch sweep``: which strategy, with which knobs, serves the most inside the SLO."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunebatch.cli import options, sweep_folder
from tunebatch.cli import sweep_question as question
from tunebatch.cli.errors import ENVIRONMENT, CliError, disk_is_full

if TYPE_CHECKING:
    from tunebatch.profile import Profile


def sweep(
    profile: options.ProfileIfGiven = None,
    model: options.Model = None,
    draft: options.Draft = None,
    acceptance: options.Acceptance = None,
    device: options.Device = None,
    backend: options.Backend = None,
    compiled: options.Compile = None,
    workload: options.WorkloadName = None,
    trace_file: options.TraceFile = None,
    slo: options.SloTexts = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            metavar="NAME",
            help=options.STRATEGY_HELP,
            show_default=False,
        ),
    ] = None,
    features: Annotated[
        str | None, typer.Option(metavar="NAMES", help=options.FEATURES_HELP, show_default=False)
    ] = None,
    objective: Annotated[
        str | None, typer.Option(metavar="NAME", help="capacity or throughput.", show_default=False)
    ] = None,
    knob: options.Ranges = None,
    sampler: options.Sampler = None,
    trials: Annotated[
        int | None,
        typer.Option(metavar="N", help="Configurations to measure at most.", show_default=False),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="How long, such as 90s or 10m; a begun trial ends.", show_default=False
        ),
    ] = None,
    baseline: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="'random': a random search with as many trials, too.", show_default=False
        ),
    ] = None,
    requests: options.Requests = None,
    seed: options.Seed = None,
    rate: Annotated[
        float | None,
        typer.Option(
            "--start-rate",
            metavar="RATE",
            help="Requests per second at which to begin [estimated].",
            show_default=False,
        ),
    ] = None,
    resume: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Go on with the sweep that was begun there; it measures nothing twice.",
            show_default=False,
            parser=options.path("--resume", "name the folder of a sweep, or leave it out to begin one"),
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be measured, and about how long it takes.")
    ] = False,
    out: options.Out = None,
    telemetry: options.Telemetry = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Search the strategy and knobs that serve the most requests inside the SLO, and say why."""
    from tunebatch.cli import output
    from tunebatch.cli.sweep_search import search

    if baseline not in (None, "random"):
        raise CliError(f"unknown baseline {baseline!r}; did you mean 'random'? (one of random)")
    if resume is not None and out is not None:
        raise CliError("--resume goes on in its own folder; leave out --out")
    options.check_rate(rate, "--start-rate", "an estimate")
    flags = options.overrides(
        model=model,
        draft=draft,
        acceptance=acceptance,
        device=device,
        backend=backend,
        compiled=compiled,
        workload=workload,
        trace_file=trace_file,
        slo=slo,
        requests=requests,
        seed=seed,
        search={
            "strategies": options.strategy_names(strategy),
            "features": features,
            "knobs": knob or None,
            "sampler": sampler,
            "objective": objective,
            "trials": trials,
            "time": time,
        },
    )
    call: dict[str, Any] = {
        "profile": profile,
        "flags": flags,
        "environment": sweep_folder.settings_of(os.environ),
        "baseline": baseline,
        "start_rate": rate,
    }
    asked, call = _asked(call, resume)
    if question.has_slo_of_other_traffic(asked, call):
        asked = dataclasses.replace(asked, slo=type(asked.slo)(()))
        if not (json or quiet):
            output.stderr().print(
                f"the SLO of profile {asked.name} is left out, as this workload comes all at once; "
                "--slo sets one",
                soft_wrap=True,
            )
    if dry_run:
        return _dry_run(asked, call, json)
    folder = resume or output.results_folder("sweep", out)
    if resume is None and sweep_folder.begun(folder):
        raise CliError(
            f"--out {folder}: holds a sweep; go on with --resume {folder}, or choose another folder"
        )
    output.check_folder(folder)
    if resume is not None:
        sweep_folder.refuse_in_use(folder)
    try:
        return search(asked, call, folder, telemetry, json, quiet)
    except Exception as error:
        if disk_is_full(error) and sweep_folder.begun(folder):
            raise CliError(
                f"the disk is full; what was measured before is intact: free some space, "
                f"then tunebatch sweep --resume {folder}",
                ENVIRONMENT,
            ) from error
        raise


def _asked(call: dict[str, Any], resume: Path | None) -> tuple[Profile, dict[str, Any]]:
    """The profile with all that was set beside it, and the call as it is kept; what was begun goes on."""
    from tunebatch.cli.before_loading import check_draft
    from tunebatch.cli.shape_rules import check_shapes
    from tunebatch.profile import load_profile

    begun_with = None
    if resume is not None:
        begun_with, call = sweep_folder.resumed(resume, call)
    if call["profile"] is None:
        call["profile"] = "quickstart"
    asked = load_profile(call["profile"], call["flags"], call["environment"])
    if resume is not None and begun_with is not None:
        before = load_profile(begun_with["profile"], begun_with["flags"], begun_with["environment"])
        sweep_folder.refuse_other_question(resume, before, asked)
    if Path(asked.model.name).is_dir():
        call["flags"]["model"]["name"] = asked.model.name
    check_shapes(asked, [*asked.search.strategies, *asked.search.features])
    check_draft(asked, asked.search.strategies, asked.search.features)
    if call["baseline"] == asked.search.sampler == "random":
        raise CliError(
            f"--baseline random: {asked.said('search', 'sampler')} would be compared with itself; leave out "
            "the baseline, or choose another sampler (one of auto, gp, tpe)"
        )
    if asked.search.objective == "capacity" and not len(asked.slo):
        raise CliError("a capacity needs an SLO: give --slo 'p90_ttft<=500ms', or --objective throughput")
    return asked, call


def _dry_run(asked: Profile, call: dict[str, Any], json: bool) -> int:
    from tunebatch.cli import dry_run as plan
    from tunebatch.cli.feature_choice import without_idle_features

    session = question.opened(asked, question.checked_spec(asked, call), call)
    asked, left_out = without_idle_features(asked, session.workload())
    at_once = question.judged_at_once(asked, call)
    return plan.dry_run(asked, session, question.least_duration_s(session), at_once, left_out, json)
