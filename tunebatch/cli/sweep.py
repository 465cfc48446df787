"""``tunebatch sweep``: which strategy, with which knobs, serves the most inside the SLO."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunebatch.cli import options
from tunebatch.cli.errors import INFEASIBLE, INTERRUPTED, OK, CliError

if TYPE_CHECKING:
    from tunebatch.cli.session import Session
    from tunebatch.profile import Profile
    from tunebatch.tune.facts import SweepOutcome

_FLAGS = "command.json"


def sweep(
    profile: options.ProfileName = "quickstart",
    model: options.Model = None,
    device: options.Device = None,
    workload: options.WorkloadName = None,
    trace_file: options.TraceFile = None,
    slo: options.SloTexts = None,
    strategy: Annotated[
        list[str] | None, typer.Option("--strategy", help="Repeat, or 'all'.", show_default=False)
    ] = None,
    objective: Annotated[str | None, typer.Option(help="capacity or throughput.", show_default=False)] = None,
    trials: Annotated[
        int | None, typer.Option(help="Configurations to measure at most.", show_default=False)
    ] = None,
    time: Annotated[str | None, typer.Option(help="How long, such as 3m.", show_default=False)] = None,
    baseline: Annotated[
        str | None,
        typer.Option(help="'random': as many random trials too.", show_default=False),
    ] = None,
    requests: options.Requests = None,
    seed: options.Seed = None,
    rate: Annotated[
        float | None, typer.Option("--start-rate", help="Where to look for capacities.", show_default=False)
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Go on with the sweep in this folder.", show_default=False)
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be done; measure nothing.")
    ] = False,
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Search the strategy and knobs that serve the most requests inside the SLO, and say why."""
    from tunebatch.cli import output
    from tunebatch.profile import load_profile

    if baseline not in (None, "random"):
        raise CliError(f"unknown baseline {baseline!r}; did you mean 'random'? (one of random)")
    if resume is not None and out is not None:
        raise CliError("--resume goes on in its own folder; leave out --out")
    options.check_rate(rate)
    flags = options.overrides(
        model=model,
        device=device,
        workload=workload,
        trace_file=trace_file,
        slo=slo,
        requests=requests,
        seed=seed,
        search={"strategies": strategy or None, "objective": objective, "trials": trials, "time": time},
    )
    call: dict[str, Any] = {"profile": profile, "flags": flags, "baseline": baseline, "start_rate": rate}
    if resume is not None:
        call = _resumed(resume, call)
    asked = load_profile(call["profile"], call["flags"])
    if asked.search.objective == "capacity" and not len(asked.slo):
        raise CliError("a capacity needs an SLO: give --slo 'p90_ttft<=500ms', or --objective throughput")
    if dry_run:
        return _dry_run(asked, json)
    folder = resume or output.results_folder("sweep", out)
    return _sweep(asked, call, folder, json, quiet)


def _resumed(folder: Path, call: dict[str, Any]) -> dict[str, Any]:
    """What the sweep was begun with, changed by the flags given now."""
    import json

    try:
        begun: dict[str, Any] = json.loads((folder / _FLAGS).read_text(encoding="utf-8"))
        for section, keys in call["flags"].items():
            given = {key: value for key, value in keys.items() if value is not None}
            begun["flags"].setdefault(section, {}).update(given)
        for key in ("baseline", "start_rate"):
            begun[key] = call[key] if call[key] is not None else begun[key]
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        raise CliError(f"--resume {folder}: no sweep was begun there ({_FLAGS} missing or broken)") from None
    return begun


def _sweep(asked: Profile, call: dict[str, Any], folder: Path, json: bool, quiet: bool) -> int:
    from tunebatch.cli import output, sweep_report
    from tunebatch.cli.session import Session, check_samples
    from tunebatch.cli.traffic import workload_spec
    from tunebatch.engine.strategies import strategy as make_strategy
    from tunebatch.measure.result import RunResult, write_result
    from tunebatch.report.progress import Progress
    from tunebatch.tune.study import run_sweep

    check_samples(asked, workload_spec(asked))
    search = asked.search
    with Progress(output.stderr(), quiet or json) as progress:
        progress.status("loading the model")
        session = Session.open(asked)
        _check_rhythm(session, search.objective)
        progress.note(session.describe())
        progress.note(session.check_tokens([make_strategy(name) for name in search.strategies]))
        output.write_json(folder / _FLAGS, call)

        def keep(result: RunResult) -> None:
            write_result(result, folder)

        outcome = run_sweep(
            session.measure,
            strategies=search.strategies,
            directory=folder,
            objective=search.objective,
            start_rate=call["start_rate"] or asked.workload.rate_per_s,
            least_s=_least_duration_s(session),
            max_trials=search.trials,
            max_time_s=search.time,
            seed=search.seed,
            baseline_random=call["baseline"] == "random",
            confirm_top=search.confirm,
            identity={
                "slo": asked.slo.texts(),
                "model": asked.model.name,
                "workload": session.workload().fingerprint(),
            },
            on_event=sweep_report.Watcher(progress, "req/s" if search.objective == "capacity" else "tok/s"),
            write_winner=keep,
        )
    if not outcome.trials and not outcome.interrupted:
        raise CliError(
            f"the time ran out before one configuration was measured: use --time {3 * search.time:g}s, "
            f"or fewer or shorter requests"
        )
    data = sweep_report.outcome_json(outcome, asked)
    output.write_json(folder / "sweep.json", data)
    if json:
        output.print_json(data)
    else:
        sweep_report.print_outcome(outcome, asked, output.stdout(), quiet, output.ascii_only())
        if not quiet:
            _next(outcome, folder)
    if outcome.interrupted:
        return INTERRUPTED
    return OK if outcome.winner is not None else INFEASIBLE


def _least_duration_s(session: Session) -> float:
    """How long requests have to arrive in every run of the search."""
    from statistics import mean

    from tunebatch.tune.sustained import least_duration_s

    tokens = mean(request.max_tokens for request in session.workload().requests)
    return least_duration_s(session.profile.slo, tokens)


def _check_rhythm(session: Session, objective: str) -> None:
    """A capacity is a rate, so there must be one to change."""
    workload = session.workload()
    if objective == "capacity" and workload.unit_arrivals_s is None:
        raise CliError(
            f"workload {workload.name} has no arrivals to scale, so no capacity: use --objective throughput"
        )


def _next(outcome: SweepOutcome, folder: Path) -> None:
    """The command to type now."""
    from tunebatch.cli import output

    console = output.stderr()
    console.print(f"written: {folder}", soft_wrap=True)
    winner = outcome.winner
    if outcome.interrupted:
        command = f"tunebatch sweep --resume {folder}"
    elif winner is None:
        command = "tunebatch sweep with a looser --slo, or fewer tokens per request"
    else:
        knobs = "".join(f" --set {name}={value:g}" for name, value in winner.knobs.items())
        command = f"tunebatch run {winner.strategy}{knobs}"
        if outcome.best:
            command += f" --rate {winner.capacity:.3g}" if winner.met else ""
    console.print(f"next: {command}", soft_wrap=True)


def _dry_run(asked: Profile, json: bool) -> int:
    """How long, which requests, and whether they suffice; loads the model to know its context."""
    from tunebatch.cli import output
    from tunebatch.cli.session import Session, check_samples, needed_samples
    from tunebatch.cli.traffic import workload_spec

    spec = workload_spec(asked)
    check_samples(asked, spec)
    session = Session.open(asked)
    _check_rhythm(session, asked.search.objective)
    workload = session.workload()
    search = asked.search
    plan = {
        "schema": "tunebatch.plan.v1",
        "strategies": search.strategies,
        "objective": search.objective,
        "max_trials": search.trials,
        "max_time_s": search.time,
        "workload": workload.description,
        "notes": list(workload.notes),
        "requests": len(workload.requests),
        "slo": asked.slo.texts(),
        "samples_needed": dict(needed_samples(asked)),
    }
    if json:
        output.print_json(plan)
        return OK
    print(f"search:   {', '.join(search.strategies)}; objective {search.objective}")
    print(f"how long: at most {search.time:g} s and {search.trials} trials; the last one is finished")
    print(f"requests: {workload.description}")
    for note in workload.notes:
        print(f"          {note}")
    for name, needed in needed_samples(asked):
        print(f"samples:  {name} needs {needed} requests, there are {len(workload.requests)}: enough")
    print("nothing was measured")
    return OK
