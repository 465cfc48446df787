"""``tunebatch run``: one strategy, one measured run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from tunebatch.cli import options
from tunebatch.cli.errors import ENVIRONMENT, INFEASIBLE, OK, CliError

if TYPE_CHECKING:
    from pathlib import Path

    from tunebatch.cli.session import Session
    from tunebatch.engine.strategies import Strategy
    from tunebatch.measure.result import RunResult
    from tunebatch.report.progress import Progress


def run(
    strategy: Annotated[
        str,
        typer.Argument(metavar="STRATEGY", help=options.ONE_STRATEGY_HELP),
    ] = "continuous",
    set_: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            "-s",
            metavar="KNOB=VALUE",
            help="Such as max_batch_size=32 or chunk_size=auto. Repeat for more.",
            show_default=False,
        ),
    ] = None,
    profile: options.ProfileName = "quickstart",
    model: options.Model = None,
    draft: options.Draft = None,
    acceptance: options.Acceptance = None,
    device: options.Device = None,
    backend: options.Backend = None,
    compiled: options.Compile = None,
    workload: options.WorkloadName = None,
    trace_file: options.TraceFile = None,
    slo: options.SloTexts = None,
    rate: options.Rate = None,
    requests: options.Requests = None,
    seed: options.Seed = None,
    clock: Annotated[
        str, typer.Option(metavar="CLOCK", help="replay skips idle gaps; wall waits through them.")
    ] = "replay",
    no_overlap: Annotated[
        bool,
        typer.Option(
            "--no-overlap",
            help="Plan each step after the one before; on a GPU both go on at once by default.",
        ),
    ] = False,
    telemetry: options.Telemetry = False,
    out: options.Out = None,
    trace: options.Trace = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Measure one strategy with its knobs on one workload.

    Exits with 6 where a limit of the SLO is missed, and with 7 where too few samples tell; an --slo that so
    few requests never could tell is refused. A profile's SLO is not held against other traffic than its own:
    another --workload or --trace-file, or, without a --rate, requests that come all at once.
    """
    from tunebatch.cli import output
    from tunebatch.cli.before_loading import check_draft, untold
    from tunebatch.cli.session import Session
    from tunebatch.cli.shape_rules import check_shapes
    from tunebatch.cli.traffic import checked_spec, has_own_schedule, refuse_rate
    from tunebatch.engine.knobs import MAX_BATCH_SIZE
    from tunebatch.engine.strategies import strategy as make_strategy
    from tunebatch.measure.result import ResultError, write_result
    from tunebatch.profile import load_profile
    from tunebatch.report.conditions import caveats_of
    from tunebatch.report.perfetto import write_trace
    from tunebatch.report.progress import Progress
    from tunebatch.tune.space import within_slots

    options.check_one_strategy(strategy)
    knobs = options.knob_values(set_ or [])
    chosen = make_strategy(strategy, knobs)
    options.check_rate(rate)
    asked = load_profile(
        profile,
        options.overrides(
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
            overlap=False if no_overlap else None,
        ),
    )
    if clock not in ("replay", "wall"):
        raise CliError(f"unknown clock {clock!r}; one of replay, wall")
    slots, notes = asked.device.max_slots, options.preset_notes([strategy])
    if MAX_BATCH_SIZE.name not in knobs and (fitting := within_slots(chosen, slots)) != chosen:
        chosen = fitting
        notes.append(f"max_batch_size {slots} instead of the default, as there are {slots} batch slots")
    options.check_slots(chosen, slots)
    check_shapes(asked, [chosen.name])
    check_draft(asked, [chosen.name])
    spec = checked_spec(asked)
    refuse_rate(rate, asked, spec)
    own_traffic = workload is None and trace_file is None
    paced = rate is not None or has_own_schedule(asked, spec)
    held = bool(slo) or (own_traffic and paced)
    problem = untold(asked, spec, rate) if held else ""
    if problem and slo:
        raise CliError(problem)
    folder = output.results_folder("run", out)
    output.check_folder(folder)
    if trace is not None:
        output.make_trace_folder(trace)
    with Progress(output.stderr(), quiet or json) as progress:
        if problem:
            progress.note(problem)
        progress.status("loading the model")
        session = Session.open(asked, spec, clock, progress)
        result = _measured(session, chosen, rate, telemetry, folder, notes, progress)
    unwritten: ResultError | None = None
    written = False
    try:
        write_result(result, folder)
        written = True
        if trace is not None:
            write_trace(result, trace)
    except ResultError as error:
        unwritten = error  # no reason not to show it
    _show(result, json, quiet)
    told, code = _verdict(result, held)
    if told and not json:
        print(told)
    if not json:
        output.print_notes(caveats_of([result]))
    if unwritten is not None:
        if written:
            output.stderr().print(f"written: {folder}", soft_wrap=True)
        raise unwritten
    if not (json or quiet):
        output.stderr().print(f"written: {folder}", soft_wrap=True)
        if trace is not None:
            output.stderr().print(f"trace: {trace}; open it at ui.perfetto.dev", soft_wrap=True)
        output.stderr().print("next: tunebatch compare", soft_wrap=True)
    return code


def _verdict(result: RunResult, held: bool) -> tuple[str, int]:
    """Whether the SLO was kept, in a line, and the exit code; nothing to say without an SLO.

    Args:
        held: The limits are for traffic that comes as this did.
    """
    from tunebatch.report.verdict import is_missed, slo_line

    if result.verdict is None:
        return "", OK
    line = slo_line(result.verdict)
    if result.verdict.met:
        return line, OK
    if not held:
        return f"{line} (the profile's limits for other traffic, so the exit code is 0; --slo sets some)", OK
    return line, INFEASIBLE if is_missed(result.verdict) else ENVIRONMENT


def _measured(
    session: Session,
    chosen: Strategy,
    rate: float | None,
    telemetry: bool,
    folder: Path,
    notes: list[str],
    progress: Progress,
) -> RunResult:
    """Says what is served, checks its tokens, and serves it once."""
    from tunebatch.cli import output
    from tunebatch.engine.plan import OutOfDeviceMemoryError

    for line in [*session.describe(session.as_asked(rate)), *notes]:
        progress.note(line)
    progress.note(session.check_tokens([chosen]))
    if telemetry:
        progress.status("measuring matrix products and copies")
        session.measure_ceilings()
    output.make_folder(folder)
    progress.status(f"measuring {chosen.label}")
    try:
        return session.measure_as_asked(chosen, rate)
    except OutOfDeviceMemoryError as error:
        raise CliError(f"{chosen.label}: {error}", INFEASIBLE) from None


def _show(result: RunResult, json: bool, quiet: bool) -> None:
    """One row, its latencies, and under which conditions they were measured."""
    from tunebatch.cli import output
    from tunebatch.measure.result import to_json_dict
    from tunebatch.report.conditions import conditions_line
    from tunebatch.report.device import caution_lines, device_lines
    from tunebatch.report.latencies import NOTE, latency_table
    from tunebatch.report.prose import print_prose
    from tunebatch.report.rows import Row
    from tunebatch.report.screen import print_rows
    from tunebatch.report.speculation import name_of, speculation_line
    from tunebatch.report.why import hung_up_text

    if json:
        output.print_json(to_json_dict(result))
        return
    rows = [Row(result, result.metrics.request_throughput)]
    console = output.stdout()
    print_rows(console, rows, ascii_only=output.ascii_only(), quiet=quiet)
    if not quiet:
        console.print()
        console.print(latency_table(result.metrics))
        print_prose(console, NOTE, "dim")
        if result.speculation is not None:
            console.print(speculation_line(name_of(result), result.speculation), soft_wrap=True)
        if result.conditions is not None:
            console.print(conditions_line(result.conditions), soft_wrap=True)
        for line in device_lines(result):
            console.print(line, soft_wrap=True)
    for line in caution_lines(rows):
        print(f"caution: {line}")
    if (gone := hung_up_text(rows)) is not None:
        print(f"caution: {gone}")
