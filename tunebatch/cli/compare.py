"""``tunebatch compare``: strategies measured side by side, or saved results side by side."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tunebatch.cli import options
from tunebatch.cli.errors import INFEASIBLE, NOT_COMPARABLE, CliError

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
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Measure strategies side by side, with default knobs; or show saved results side by side."""
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
            search={"strategies": strategy or None},
        ),
    )
    return _measured(asked, rate, out, trace, json, quiet)


def _measured(
    asked: Profile, rate: float | None, out: Path | None, trace: Path | None, json: bool, quiet: bool
) -> int:
    """Measures strategy after strategy; shows what there is, whatever ends it."""
    from tunebatch.cli import output
    from tunebatch.cli.session import Session
    from tunebatch.cli.shape_rules import check_shapes
    from tunebatch.cli.traffic import checked_spec
    from tunebatch.engine.plan import OutOfDeviceMemoryError
    from tunebatch.engine.strategies import strategy as make_strategy
    from tunebatch.measure.result import ResultError, write_result
    from tunebatch.report.perfetto import write_trace
    from tunebatch.report.progress import Progress
    from tunebatch.tune.space import within_slots

    defaults = [make_strategy(name) for name in asked.search.strategies]
    chosen = [within_slots(one, asked.device.max_slots) for one in defaults]
    check_shapes(asked, [one.name for one in chosen])
    spec = checked_spec(asked)
    folder = output.results_folder("compare", out)
    traces = _trace_files(trace, [one.name for one in chosen])
    for file in traces.values():
        output.make_trace_folder(file)
    measured: list[tuple[str, RunResult]] = []
    infeasible: list[str] = []
    stopped: BaseException | None = None
    with Progress(output.stderr(), quiet or json) as progress:
        progress.status("loading the model")
        session = Session.open(asked, spec)
        for line in [
            *session.describe(session.as_asked(rate)),
            *options.preset_notes(asked.search.strategies),
        ]:
            progress.note(line)
        progress.note(session.check_tokens(chosen))
        if chosen != defaults:
            slots = asked.device.max_slots
            progress.note(f"max_batch_size {slots} instead of the default, as there are {slots} batch slots")
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
                if one.name in traces:
                    write_trace(measured[-1][1], traces[one.name])
        except (KeyboardInterrupt, ResultError) as error:
            stopped = error
    if measured:
        _show(measured, json, quiet)
    for line in infeasible:
        print(line, file=sys.stderr)
    if stopped is not None:
        raise stopped
    if not measured:
        return INFEASIBLE
    if not (quiet or json):
        output.print_notes(session.workload().notes)
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
    from tunebatch.measure.result import read_result
    from tunebatch.report.speculation import rates_text

    if len(paths) < 2:
        raise CliError(f"only {paths[0]} to compare; give at least two saved results")
    found = [read_result(path) for path in paths]
    for path, result in zip(paths[1:], found[1:], strict=True):
        for what, value in _identity(found[0]).items():
            other = _identity(result)[what]
            if other != value and not (what == "workload" and _differs_by_rate_only(found[0], result)):
                difference = f"{what} {other!r}, not {value!r}"
                if what == "workload":
                    difference = f"another workload, {_traffic_difference(found[0], result)}"
                raise CliError(f"{path} is not comparable with {paths[0]}: {difference}", NOT_COMPARABLE)
    drawn = {rates_text(one.speculation.synthetic_acceptance) for one in found if one.speculation is not None}
    if len(drawn) > 1:
        raise CliError(f"not comparable: synthetic acceptance {' and '.join(sorted(drawn))}", NOT_COMPARABLE)
    marks = [chr(ord("A") + index) if len(paths) <= 26 else str(index + 1) for index in range(len(paths))]
    sources = [f"{mark}: {_source(path)}" for mark, path in zip(marks, paths, strict=True)]
    _show(list(zip(marks, found, strict=True)), json, quiet, sources)


def _source(path: Path) -> str:
    """What the user calls a saved result."""
    return str(path.parent if path.name == "result.json" and path.parent.name else path)


def _identity(result: RunResult) -> dict[str, Any]:
    """What must be the same, or a difference is not the strategy's."""
    return {
        "workload": result.workload.get("fingerprint"),
        "model": result.model.get("name"),
        "dtype": result.model.get("dtype"),
        "processor": result.environment.get("cpu"),
        "GPU": result.environment.get("gpu"),
        "SLO": result.slo,
    }


def _differs_by_rate_only(first: RunResult, other: RunResult) -> bool:
    """The same traffic, which came faster in one and so, to last as long, had more requests."""
    one, two = first.workload, other.workload
    rates = one.get("rate_per_s"), two.get("rate_per_s")
    if None in rates or rates[0] == rates[1] or one.get("likeness") is None:
        return False
    return one["likeness"] == two.get("likeness") and one.get("seed") == two.get("seed")


def _traffic_difference(first: RunResult, other: RunResult) -> str:
    """What a user can make equal; fingerprints only tell that something differs."""
    differing = []
    for key, words in (("rate_per_s", "rate"), ("seed", "seed"), ("num_requests", "requests")):
        one, two = first.workload.get(key), other.workload.get(key)
        if one != two:
            # Without a rate requests come all at once, or one after another's answer.
            shown = ["none" if value is None else f"{value}" for value in (two, one)]
            differing.append(f"{words} {shown[0]}, not {shown[1]}")
    if differing:
        return "; ".join(differing)
    return (
        "of the same rate, seed and number of requests, but other prompts, lengths or times: "
        f"{other.workload.get('description')!r}, not {first.workload.get('description')!r}"
    )


def _show(
    results: list[tuple[str, RunResult]], json: bool, quiet: bool, sources: list[str] | None = None
) -> None:
    """Results with their marks, which are empty for those measured now."""
    from tunebatch.cli import output
    from tunebatch.measure.result import to_json_dict
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
        notes=sources or (),
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
