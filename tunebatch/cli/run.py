"""``tunebatch run``: one strategy, one measured run."""

from __future__ import annotations

from typing import Annotated

import typer

from tunebatch.cli import options


def run(
    strategy: Annotated[str, typer.Argument(help="Such as continuous.")] = "continuous",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", "-s", help="A knob, such as max_batch_size=32; repeat.", show_default=False),
    ] = None,
    profile: options.ProfileName = "quickstart",
    model: options.Model = None,
    device: options.Device = None,
    workload: options.WorkloadName = None,
    trace_file: options.TraceFile = None,
    slo: options.SloTexts = None,
    rate: options.Rate = None,
    requests: options.Requests = None,
    seed: options.Seed = None,
    clock: Annotated[str, typer.Option(help="replay skips idle gaps; wall waits through them.")] = "replay",
    out: options.Out = None,
    json: options.Json = False,
    quiet: options.Quiet = False,
) -> int:
    """Measure one strategy with its knobs on one workload."""
    from tunebatch.cli import output
    from tunebatch.cli.session import Session
    from tunebatch.engine.strategies import strategy as make_strategy
    from tunebatch.measure.result import to_json_dict, write_result
    from tunebatch.profile import load_profile
    from tunebatch.report.progress import Progress
    from tunebatch.report.rows import Row
    from tunebatch.report.screen import print_rows

    chosen = make_strategy(strategy, options.knob_values(set_ or []))
    options.check_rate(rate)
    asked = load_profile(
        profile,
        options.overrides(
            model=model,
            device=device,
            workload=workload,
            trace_file=trace_file,
            slo=slo,
            requests=requests,
            seed=seed,
        ),
    )
    folder = output.results_folder("run", out)
    with Progress(output.stderr(), quiet or json) as progress:
        progress.status("loading the model")
        session = Session.open(asked, clock)
        progress.note(session.describe())
        progress.note(session.check_tokens([chosen]))
        progress.status(f"measuring {chosen.label}")
        result = session.measure_as_asked(chosen, rate)
    path = write_result(result, folder)
    if json:
        output.print_json(to_json_dict(result))
        return 0
    console = output.stdout()
    print_rows(
        console, [Row(result, result.metrics.request_throughput)], ascii_only=output.ascii_only(), quiet=quiet
    )
    if not quiet:
        output.stderr().print(f"written: {path}", soft_wrap=True)
        output.stderr().print("next: tunebatch compare", soft_wrap=True)
    return 0
