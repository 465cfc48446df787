"""``tunebatch``: the commands, and what becomes of their errors. Imports nothing heavy."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Annotated, NoReturn

import typer

import tunebatch
from tunebatch.cli import compare, doctor, plan, run, sweep
from tunebatch.cli.errors import INTERRUPTED, MEANINGS, OK, report_error

app = typer.Typer(
    name="tunebatch",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


_EXIT_CODES = "; ".join(f"{code} {meaning}" for code, meaning in MEANINGS.items())


@app.callback(invoke_without_command=True, epilog=f"Exit codes: {_EXIT_CODES}.")
def _root(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the version and exit.")] = False,
) -> None:
    """Which batching strategy serves the most requests on this machine inside your latency SLO, and why."""
    if version:
        typer.echo(f"tunebatch {tunebatch.__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


app.command("sweep", short_help="Find the best strategy and knobs inside the SLO.")(sweep.sweep)
app.command("compare", short_help="Set strategies, or saved results, side by side.")(compare.compare)
app.command("run", short_help="Measure one strategy once.")(run.run)
app.command("plan", short_help="Predict from a config what fits into memory.")(plan.plan)
app.command("doctor", short_help="Say what this machine has, and what it lacks.")(doctor.doctor)


def run_command(arguments: Sequence[str]) -> int:
    """Runs one command; returns its exit code and raises nothing."""
    try:
        code = app(list(arguments), standalone_mode=False, prog_name="tunebatch")
        sys.stdout.flush()
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # Whoever read us has closed; the interpreter must not fail on it again when it flushes.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return OK
    except SystemExit as left:
        if isinstance(left.__context__, BrokenPipeError):  # what rich makes of it
            return OK
        raise
    except typer.Abort:
        print("interrupted", file=sys.stderr)
        return INTERRUPTED
    except Exception as error:
        return report_error(error)
    if code == INTERRUPTED:  # also what typer makes of Ctrl-C
        print("interrupted", file=sys.stderr)
    return code if isinstance(code, int) else OK


def main() -> NoReturn:
    """The console script."""
    sys.exit(run_command(sys.argv[1:]))
