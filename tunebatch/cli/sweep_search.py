"""A sweep from the loaded model to what it says: search, files, screen, and the command to type next."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunebatch.cli import options, sweep_folder
from tunebatch.cli import sweep_question as question
from tunebatch.cli.errors import ENVIRONMENT, INFEASIBLE, INTERRUPTED, OK, CliError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from tunebatch.cli.session import Session
    from tunebatch.engine.strategies import Strategy
    from tunebatch.measure.result import RunResult
    from tunebatch.profile import Profile
    from tunebatch.report.progress import Progress
    from tunebatch.tune.facts import SweepOutcome


def search(
    asked: Profile, call: dict[str, Any], folder: Path, telemetry: bool, json: bool, quiet: bool
) -> int:
    """Loads the model, searches, writes and shows; the exit code.

    Args:
        call: What the sweep was called with, as its folder keeps it.
        telemetry: Measure the ceilings of the machine first.
    """
    from tunebatch.cli import output
    from tunebatch.cli.feature_choice import without_idle_features
    from tunebatch.measure.result import ResultError, write_result
    from tunebatch.report.conditions import drawn_words
    from tunebatch.report.progress import Progress
    from tunebatch.tune.sustained import least_duration_s

    spec = question.checked_spec(asked, call)
    # What a longer run than this one takes is known with the model.
    question.start_rate(asked, call, spec, least_duration_s(asked.slo, 0.0))
    # Not to be able to write the answer is no reason not to show it.
    unwritten: list[Exception] = []

    def keep(result: RunResult) -> None:
        try:
            write_result(result, folder)
        except ResultError as error:
            unwritten.append(error)

    with Progress(output.stderr(), quiet or json) as progress:
        progress.status("loading the model")
        session = question.opened(asked, spec, call, progress)
        asked, left_out = without_idle_features(asked, session.workload())
        least_s = question.least_duration_s(session)
        start_rate = question.start_rate(asked, call, spec, least_s)
        _say_what_is_served(session, asked, left_out, progress)
        if telemetry:
            progress.status("measuring matrix products and copies")
            session.measure_ceilings()
        output.make_folder(folder)
        needed = _Needed(session, asked, least_s, progress)
        outcome = _searched(session, asked, call, folder, start_rate, needed, progress, keep)
    if not outcome.trials:
        raise _nothing_measured(outcome, folder, asked.search.time, needed.seconds)
    drawn = drawn_words(session.has_random_weights, asked.model.acceptance)
    notes = [*drawn, *session.workload().notes]
    unwritten += _told(outcome, asked, left_out, folder, notes, json, quiet)
    if unwritten:
        raise unwritten[0]
    if not (json or quiet):
        _next(outcome, folder, asked, call)
    if outcome.interrupted:
        return INTERRUPTED
    return OK if outcome.winner is not None else INFEASIBLE


def _say_what_is_served(
    session: Session, asked: Profile, left_out: dict[str, str], progress: Progress
) -> None:
    """The model and the traffic, and that every variant of the strategies gives the same tokens."""
    from tunebatch.cli.feature_choice import left_out_lines
    from tunebatch.cli.sweep_words import search_lines
    from tunebatch.tune.space import Space

    strategies = asked.search.strategies
    notes = [*options.preset_notes(strategies), *left_out_lines(left_out), *search_lines(asked.search)]
    for line in [*session.describe(session.workload()), *notes]:
        progress.note(line)
    space = Space(strategies, features=asked.search.features, ranges=asked.search.knobs)
    served = [space.default(name) for base in space.names for name in space.variants(base)]
    progress.note(session.check_tokens(served))


class _Needed:
    """How long the defaults and the confirmation take at least, once each strategy's pace is known.

    Attributes:
        seconds: Predicted; 0 as long as nothing is known.
    """

    def __init__(self, session: Session, asked: Profile, least_s: float, progress: Progress) -> None:
        self._session = session
        self._search = asked.search
        self._progress = progress
        self.least_run_s = least_s
        self.seconds = 0.0

    def predict(self, saturated: Mapping[str, float]) -> None:
        """Given requests a second of each strategy; says so if there is not the time."""
        from tunebatch.cli.predicted_time import about, least_time_s, runs_at, too_short

        if not saturated:
            return
        _, run_s = runs_at(saturated, self._session, self._search, self.least_run_s)
        self.seconds = least_time_s(list(run_s.values()), self._search)
        if short := too_short(self.seconds, self._search.time, spare=False):
            tried = "the defaults and the confirmation"
            self._progress.note(f"predicted: {tried} take about {about(self.seconds)}{short}")


def _searched(
    session: Session,
    asked: Profile,
    call: dict[str, Any],
    folder: Path,
    start_rate: float | None,
    needed: _Needed,
    progress: Progress,
    keep: Callable[[RunResult], None],
) -> SweepOutcome:
    from tunebatch.cli.sweep_progress import Watcher
    from tunebatch.tune.study import run_sweep

    wanted = asked.search
    return run_sweep(
        session.measure,
        strategies=wanted.strategies,
        features=wanted.features,
        ranges=wanted.knobs,
        sampler=wanted.sampler,
        directory=folder,
        objective=wanted.objective,
        start_rate=start_rate,
        least_s=needed.least_run_s,
        max_trials=wanted.trials,
        max_time_s=wanted.time,
        seed=wanted.seed,
        baseline_random=call["baseline"] == "random",
        confirm_top=wanted.confirm,
        max_slots=asked.device.max_slots,
        identity=question.identity(session),
        on_begin=lambda: sweep_folder.keep_call(folder, call),
        on_paced=needed.predict,
        on_event=Watcher(progress, asked),
        write_winner=keep,
    )


def _told(
    outcome: SweepOutcome,
    asked: Profile,
    left_out: Mapping[str, str],
    folder: Path,
    notes: Sequence[str],
    json: bool,
    quiet: bool,
) -> list[Exception]:
    """Writes the answer, and shows it even where that failed; the failures."""
    from tunebatch.cli import output
    from tunebatch.cli.sweep_json import outcome_json
    from tunebatch.cli.sweep_report import print_outcome

    failures: list[Exception] = []
    data = outcome_json(outcome, asked, left_out, notes)
    try:
        output.write_json(folder / "sweep.json", data)
    except OSError as error:
        failures.append(error)
    if json:
        output.print_json(data)
    else:
        print_outcome(outcome, asked, output.stdout(), quiet, output.ascii_only())
        output.print_notes(notes)
    return failures


def _nothing_measured(outcome: SweepOutcome, folder: Path, time_s: float, least_s: float) -> CliError:
    from tunebatch.report.rows import number

    if outcome.interrupted:
        so_far = ""
        if outcome.kept is not None:
            chosen, rate = outcome.kept
            so_far = f"; at least {number(rate)} req/s inside the SLO with {chosen.label}"
        return CliError(
            f"interrupted before one configuration was measured{so_far}; "
            f"tunebatch sweep --resume {folder} goes on",
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
        told = knobs_to_set(winner.chosen, asked.device.max_slots)
        knobs = "".join(f" --set {name}={value}" for name, value in told.items())
        settings = sweep_folder.settings_elsewhere(call)
        command = f"{settings}tunebatch run {winner.strategy}{knobs}{sweep_folder.same_question(call)}"
        if asked.search.objective == "capacity" and not unbounded(winner, outcome.binding, asked):
            command += f" --rate {mean_capacity(winner):.3g}"
    console.print(f"next: {command}", soft_wrap=True)


def knobs_to_set(chosen: Strategy, max_slots: int) -> dict[str, float | int | str]:
    """The knobs without which `run` would serve another configuration; the others have their defaults."""
    from tunebatch.engine.strategies import strategy
    from tunebatch.tune.space import within_slots

    default = within_slots(strategy(chosen.name), max_slots).shown_knobs
    return {name: value for name, value in chosen.shown_knobs.items() if value != default[name]}
