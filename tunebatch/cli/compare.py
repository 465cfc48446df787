"""``tunebatch compare``: strategies measured side by side, or saved results side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tunebatch.cli import options
from tunebatch.cli.errors import INFEASIBLE, CliError

if TYPE_CHECKING:
    from tunebatch.measure.result import RunResult
    from tunebatch.profile import Profile
    from tunebatch.report.rows import Row

SCHEMA = "tunebatch.compare.v1"


def compare(
    results: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="RESULT",
            help="Saved results, as files or their folders. Without any, strategies are measured.",
            show_default=False,
            parser=options.path("a saved result", "name its file or its folder"),
        ),
    ] = None,
    strategy: Annotated[
        list[str] | None,
        typer.Option(
            "--strategy",
            metavar="NAME",
            help=options.STRATEGY_HELP,
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
    out: options.Out = None,
    trace: options.Trace = None,
    telemetry: options.Telemetry = False,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Measure strategies side by side, with default knobs; or show saved results side by side.

    A missed SLO is part of the answer here, so the exit code is 0.
    """
    if results:
        given = {
            "--strategy": strategy,
            "--model": model,
            "--draft": draft,
            "--acceptance": acceptance,
            "--device": device,
            "--backend": backend,
            "--compile": compiled,
            "--workload": workload,
            "--trace-file": trace_file,
            "--slo": slo,
            "--rate": rate,
            "--requests": requests,
            "--seed": seed,
            "--out": out,
            "--trace": trace,
            "--telemetry": telemetry or None,
        }
        wrong = [name for name, value in given.items() if value is not None]
        if wrong:
            raise CliError(f"{wrong[0]} measures anew, so it cannot be mixed with saved results")
        _saved(results, json, quiet)
        return 0
    from tunebatch.profile import load_profile

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
            search={"strategies": options.strategy_names(strategy)},
        ),
    )
    return _measured(asked, rate, out, trace, telemetry, json, quiet)


def _measured(
    asked: Profile,
    rate: float | None,
    out: Path | None,
    trace: Path | None,
    telemetry: bool,
    json: bool,
    quiet: bool,
) -> int:
    """Measures strategy after strategy; shows what there is, whatever ends it."""
    from tunebatch.cli import output
    from tunebatch.cli.before_loading import check_draft, untold
    from tunebatch.cli.session import Session
    from tunebatch.cli.shape_rules import check_shapes
    from tunebatch.cli.traffic import checked_spec, refuse_rate
    from tunebatch.engine.plan import OutOfDeviceMemoryError
    from tunebatch.engine.strategies import strategy as make_strategy
    from tunebatch.measure.result import ResultError, write_result
    from tunebatch.report.perfetto import write_trace
    from tunebatch.report.progress import Progress
    from tunebatch.tune.space import within_slots

    defaults = [make_strategy(name) for name in asked.search.strategies]
    chosen = [within_slots(one, asked.device.max_slots) for one in defaults]
    check_shapes(asked, [one.name for one in chosen])
    check_draft(asked, [one.name for one in chosen])
    spec = checked_spec(asked)
    refuse_rate(rate, asked, spec)
    problem = untold(asked, spec, rate)
    folder = output.results_folder("compare", out)
    output.check_folder(folder)
    traces = _trace_files(trace, [one.name for one in chosen])
    for file in traces.values():
        output.make_trace_folder(file)
    measured: list[tuple[str, RunResult]] = []
    infeasible: list[str] = []
    written = False
    stopped: BaseException | None = None
    with Progress(output.stderr(), quiet or json) as progress:
        if problem:
            progress.note(problem)
        progress.status("loading the model")
        session = Session.open(asked, spec, progress=progress)
        for line in [
            *session.describe(session.as_asked(rate)),
            *options.preset_notes(asked.search.strategies),
        ]:
            progress.note(line)
        progress.note(session.check_tokens(chosen))
        if chosen != defaults:
            slots = asked.device.max_slots
            progress.note(f"max_batch_size {slots} instead of the default, as there are {slots} batch slots")
        if telemetry:
            progress.status("measuring matrix products and copies")
            session.measure_ceilings()
        output.make_folder(folder)
        try:
            for index, one in enumerate(chosen, 1):
                progress.status(f"measuring {index} of {len(chosen)}: {one.label}")
                try:
                    measured.append(("", session.measure_as_asked(one, rate)))
                except OutOfDeviceMemoryError as error:
                    infeasible.append(f"{one.label}: {error}")
                    continue
                write_result(measured[-1][1], folder / one.name)
                written = True
                if one.name in traces:
                    write_trace(measured[-1][1], traces[one.name])
        except (KeyboardInterrupt, ResultError) as error:
            stopped = error
    if measured:
        _show(measured, json, quiet)
    for line in infeasible:
        print(line, file=sys.stderr)
    if stopped is not None:
        if written:
            output.stderr().print(f"written: {folder}", soft_wrap=True)
        raise stopped
    if not measured:
        return INFEASIBLE
    if not (quiet or json):
        console = output.stderr()
        console.print(f"written: {folder}", soft_wrap=True)
        if traces:
            console.print(
                f"traces: {', '.join(map(str, traces.values()))}; open them at ui.perfetto.dev",
                soft_wrap=True,
            )
        console.print(
            "next: tunebatch sweep, which finds each strategy's capacity inside the SLO and its best knobs",
            soft_wrap=True,
        )
    return 0


def _trace_files(trace: Path | None, names: list[str]) -> dict[str, Path]:
    """``trace.json`` of one strategy, ``trace-static.json`` and so on of several."""
    if trace is None:
        return {}
    if len(names) == 1:
        return {names[0]: trace}
    return {name: trace.with_name(f"{trace.stem}-{name}{trace.suffix}") for name in names}


def _saved(paths: list[Path], json: bool, quiet: bool) -> None:
    from tunebatch.cli.comparable import other_versions, refuse_other_work
    from tunebatch.measure.result import read_result

    if len(paths) < 2:
        raise CliError(f"only {paths[0]} to compare; give at least two saved results")
    found = [read_result(path) for path in paths]
    refuse_other_work(paths, found)
    marks = [chr(ord("A") + index) if len(paths) <= 26 else str(index + 1) for index in range(len(paths))]
    sources = [f"{mark}: {_source(path)}" for mark, path in zip(marks, paths, strict=True)]
    sources += other_versions(list(zip(marks, found, strict=True)))
    _show(list(zip(marks, found, strict=True)), json, quiet, sources)


def _source(path: Path) -> str:
    """What the user calls a saved result."""
    return str(path.parent if path.name == "result.json" and path.parent.name else path)


def _show(
    results: list[tuple[str, RunResult]], json: bool, quiet: bool, sources: list[str] | None = None
) -> None:
    """Results with their marks, which are empty for those measured now."""
    from tunebatch.cli import output
    from tunebatch.measure.result import to_json_dict
    from tunebatch.report.conditions import caveats_of, common_conditions
    from tunebatch.report.device import caution_lines
    from tunebatch.report.screen import print_rows
    from tunebatch.report.sentence import fastest, fastest_line
    from tunebatch.report.speculation import name_of, speculation_line
    from tunebatch.report.why import hung_up_text

    if json:
        output.print_json({"schema": SCHEMA, "results": [to_json_dict(result) for _, result in results]})
        return
    rate_name, rows = _rows(results)
    rates = {result.workload.get("rate_per_s") for _, result in results}
    print_rows(
        output.stdout(),
        rows,
        headline=fastest_line(rows, rate_name),
        winner=fastest(rows),
        rate_name=rate_name,
        offered=len(rates) > 1,
        notes=[*(sources or ()), *common_conditions(result.conditions for _, result in results)],
        ascii_only=output.ascii_only(),
        quiet=quiet,
    )
    if len(rates) > 1:
        print("note: the same traffic offered at different rates: latencies are those of each one's own load")
    for _, result in results:
        if result.speculation is not None and not quiet:
            output.stdout().print(speculation_line(name_of(result), result.speculation), soft_wrap=True)
    for line in caution_lines(rows):
        print(f"caution: {line}")
    if (gone := hung_up_text(rows)) is not None:
        print(f"caution: {gone}")
    output.print_notes(caveats_of(result for _, result in results))


def _rows(results: list[tuple[str, RunResult]]) -> tuple[str, list[Row]]:
    """At an offered rate throughput only repeats the rate, so goodput is what differs."""
    from tunebatch.report.rows import Row

    metrics = [result.metrics for _, result in results]
    at_rate = all(result.workload.get("rate_per_s") for _, result in results)
    if at_rate and all(one.request_goodput is not None for one in metrics):
        return "goodput req/s", [
            Row(result, result.metrics.request_goodput, source=source) for source, result in results
        ]
    return "req/s", [
        Row(result, result.metrics.request_throughput, source=source) for source, result in results
    ]
