"""``tunebatch sweep``: which strategy, with which knobs, serves the most inside the SLO."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunebatch.cli import options, sweep_folder
from tunebatch.cli import sweep_question as question
from tunebatch.cli.errors import (
    ENVIRONMENT,
    INFEASIBLE,
    INTERRUPTED,
    OK,
    CliError,
    disk_is_full,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

    from tunebatch.measure.result import RunResult
    from tunebatch.profile import Profile
    from tunebatch.tune.facts import SweepOutcome


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
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be measured, and about how long it takes.")
    ] = False,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Search the strategy and knobs that serve the most requests inside the SLO, and say why."""
    from tunebatch.cli import output
    from tunebatch.cli.feature_choice import without_idle_features
    from tunebatch.cli.session import check_draft
    from tunebatch.cli.shape_rules import check_shapes
    from tunebatch.profile import load_profile

    if baseline not in (None, "random"):
        raise CliError(f"unknown baseline {baseline!r}; did you mean 'random'? (one of random)")
    if resume is not None and out is not None:
        raise CliError("--resume goes on in its own folder; leave out --out")
    options.check_rate(rate)
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
            "strategies": strategy or None,
            "features": features,
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
    if resume is not None:
        call = sweep_folder.resumed(resume, call)
    call["profile"] = call["profile"] or "quickstart"
    asked = load_profile(call["profile"], call["flags"], call["environment"])
    if Path(asked.model.name).is_dir():
        call["flags"]["model"]["name"] = asked.model.name
    check_shapes(asked, [*asked.search.strategies, *asked.search.features])
    check_draft(asked, asked.search.strategies, asked.search.features)
    if asked.search.objective == "capacity" and not len(asked.slo):
        raise CliError("a capacity needs an SLO: give --slo 'p90_ttft<=500ms', or --objective throughput")
    if question.has_slo_of_other_traffic(asked, call):
        asked = dataclasses.replace(asked, slo=type(asked.slo)(()))
        if not (json or quiet):
            output.stderr().print(
                f"the SLO of profile {asked.name} is left out, as this workload comes all at once; "
                "--slo sets one",
                soft_wrap=True,
            )
    if dry_run:
        from tunebatch.cli import dry_run as plan

        session = question.opened(asked, question.checked_spec(asked))
        asked, left_out = without_idle_features(asked, session.workload())
        return plan.dry_run(asked, session, question.least_duration_s(session), left_out, json)
    folder = resume or output.results_folder("sweep", out)
    if resume is None and sweep_folder.begun(folder):
        raise CliError(
            f"--out {folder}: holds a sweep; go on with --resume {folder}, or choose another folder"
        )
    try:
        return _sweep(asked, call, folder, json, quiet)
    except Exception as error:
        if disk_is_full(error) and sweep_folder.begun(folder):
            raise CliError(
                f"the disk is full; what was measured before is intact: free some space, "
                f"then tunebatch sweep --resume {folder}",
                ENVIRONMENT,
            ) from error
        raise


def _sweep(asked: Profile, call: dict[str, Any], folder: Path, json: bool, quiet: bool) -> int:
    from tunebatch.cli import output
    from tunebatch.cli.feature_choice import left_out_lines, without_idle_features
    from tunebatch.cli.predicted_time import about, least_time_s, runs_at, too_short
    from tunebatch.cli.sweep_json import outcome_json
    from tunebatch.cli.sweep_progress import Watcher
    from tunebatch.cli.sweep_report import print_outcome
    from tunebatch.measure.result import ResultError, write_result
    from tunebatch.report.progress import Progress
    from tunebatch.tune.space import Space
    from tunebatch.tune.study import run_sweep

    spec = question.checked_spec(asked)
    # Not to be able to write the answer is no reason not to show it.
    unwritten: list[Exception] = []

    def keep(result: RunResult) -> None:
        try:
            write_result(result, folder)
        except ResultError as error:
            unwritten.append(error)

    with Progress(output.stderr(), quiet or json) as progress:
        progress.status("loading the model")
        session = question.opened(asked, spec)
        asked, left_out = without_idle_features(asked, session.workload())
        search = asked.search
        notes = [*options.preset_notes(search.strategies), *left_out_lines(left_out)]
        for line in [*session.describe(session.workload()), *notes]:
            progress.note(line)
        least_s = question.least_duration_s(session)
        start_rate = question.start_rate(asked, call, spec, least_s)
        space = Space(search.strategies, features=search.features)
        served = [space.default(name) for base in space.names for name in space.variants(base)]
        progress.note(session.check_tokens(served))
        output.make_folder(folder)
        needed_s = 0.0

        def say_what_is_needed(saturated: Mapping[str, float]) -> None:
            nonlocal needed_s
            if saturated:
                _, run_s = runs_at(saturated, session, search, least_s)
                needed_s = least_time_s(list(run_s.values()), search)
                if short := too_short(needed_s, search.time, spare=False):
                    tried = "the defaults and the confirmation"
                    progress.note(f"predicted: {tried} take about {about(needed_s)}{short}")

        outcome = run_sweep(
            session.measure,
            strategies=search.strategies,
            features=search.features,
            directory=folder,
            objective=search.objective,
            start_rate=start_rate,
            least_s=least_s,
            max_trials=search.trials,
            max_time_s=search.time,
            seed=search.seed,
            baseline_random=call["baseline"] == "random",
            confirm_top=search.confirm,
            max_slots=asked.device.max_slots,
            identity=question.identity(session),
            on_begin=lambda: sweep_folder.keep_call(folder, call),
            on_paced=say_what_is_needed,
            on_event=Watcher(progress, asked),
            write_winner=keep,
        )
    if not outcome.trials:
        raise _nothing_measured(outcome, folder, search.time, needed_s)
    data = outcome_json(outcome, asked, left_out)
    try:
        output.write_json(folder / "sweep.json", data)
    except OSError as error:
        unwritten.append(error)
    if json:
        output.print_json(data)
    else:
        print_outcome(outcome, asked, output.stdout(), quiet, output.ascii_only())
        if not quiet:
            output.print_notes(session.workload().notes)
    if unwritten:
        raise unwritten[0]
    if not (json or quiet):
        _next(outcome, folder, asked, call)
    if outcome.interrupted:
        return INTERRUPTED
    return OK if outcome.winner is not None else INFEASIBLE


def _nothing_measured(outcome: SweepOutcome, folder: Path, time_s: float, least_s: float) -> CliError:
    if outcome.interrupted:
        return CliError(
            f"interrupted before one configuration was measured; tunebatch sweep --resume {folder} goes on",
            INTERRUPTED,
        )
    from tunebatch.cli.predicted_time import time_flag

    return CliError(
        f"the time ran out before one configuration was measured: use {time_flag(max(least_s, 2 * time_s))} "
        f"with --resume {folder}, or fewer or shorter requests",
        ENVIRONMENT,
    )


def _next(outcome: SweepOutcome, folder: Path, asked: Profile, call: dict[str, Any]) -> None:
    """The command to type now."""
    from tunebatch.cli import output
    from tunebatch.cli.sweep_report import unbounded
    from tunebatch.tune.confirm import mean_capacity

    console = output.stderr()
    console.print(f"written: {folder}", soft_wrap=True)
    winner = outcome.winner
    if outcome.interrupted:
        command = f"tunebatch sweep --resume {folder}"
    elif winner is None:
        command = "tunebatch sweep with a looser --slo, or fewer tokens per request"
    else:
        knobs = "".join(f" --set {name}={value}" for name, value in winner.chosen.shown_knobs.items())
        settings = sweep_folder.settings_elsewhere(call)
        command = f"{settings}tunebatch run {winner.strategy}{knobs}{sweep_folder.same_question(call)}"
        if asked.search.objective == "capacity" and not unbounded(winner, outcome.binding, asked):
            command += f" --rate {mean_capacity(winner):.3g}"
    console.print(f"next: {command}", soft_wrap=True)
