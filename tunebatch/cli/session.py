"""What the measuring commands share: from a profile to an executor, a workload and a way to measure."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from tunebatch.cli.before_loading import check_draft
from tunebatch.cli.errors import CliError
from tunebatch.cli.traffic import has_own_schedule, refused

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from tunebatch.engine.clock import Clock
    from tunebatch.engine.strategies import Strategy
    from tunebatch.measure.result import RunResult
    from tunebatch.measure.telemetry.beside import Instruments
    from tunebatch.profile import Profile
    from tunebatch.report.progress import Progress
    from tunebatch.workload.spec import Workload, WorkloadSpec

_ROUND_REQUESTS = 32  # so that neighbouring rates share a workload
_KEPT_WORKLOADS = 8


@dataclass
class Session:
    """A loaded model and its traffic."""

    profile: Profile
    spec: WorkloadSpec
    executor: Any
    clock: str = "replay"
    instruments: Instruments | None = None
    _workloads: dict[tuple[int | None, int], Workload] = field(default_factory=dict)

    @classmethod
    def open(
        cls, profile: Profile, spec: WorkloadSpec, clock: str = "replay", progress: Progress | None = None
    ) -> Session:
        """Loads the model.

        Args:
            progress: Shows how far the capture of graphs has come.

        Raises:
            ModelError: See ``load_executor``.
        """
        from tunebatch.cli.instruments import instruments_of
        from tunebatch.execute.torch.load import load_executor

        model, device = profile.model, profile.device
        executor = load_executor(
            model.name,
            device=model.device,
            dtype=model.dtype,
            backend=model.backend,
            block_size=device.block_size,
            num_blocks=device.num_blocks,
            max_slots=device.max_slots,
            utilization=device.utilization,
            draft=model.draft if model.draft != "auto" else None,
            compiler="inductor" if model.compile else None,
            graphs=device.graphs,
            told=_captures_shown(progress),
        )
        return cls(profile, spec, executor, clock, instruments_of(executor, device.price_per_hour))

    def measure_ceilings(self) -> None:
        """From here on results tell MFU and MBU; takes a few seconds."""
        from tunebatch.cli.instruments import measured_ceilings

        assert self.instruments is not None
        self.instruments = replace(self.instruments, ceilings=measured_ceilings(self.executor))

    def workload(self, seed: int | None = None, at_least: int = 0) -> Workload:
        """The traffic of one seed.

        Args:
            at_least: Requests that are needed; drawn traffic goes on until there are so many, and begins
                with the same ones. A trace is as long as it is.

        Raises:
            CliError: A broken trace, or lengths that the model cannot hold.
        """
        spec = self.spec
        if spec.num_requests is not None and spec.trace_file is None and at_least > spec.num_requests:
            rounded = -(-at_least // _ROUND_REQUESTS) * _ROUND_REQUESTS
            spec = replace(spec, num_requests=rounded)
        key = (seed, spec.num_requests or 0)
        if key not in self._workloads:
            from tunebatch.cli.tokenizer import text_to_ids
            from tunebatch.workload.named import scaled_to
            from tunebatch.workload.spec import build
            from tunebatch.workload.traces import TraceError

            context, kv_tokens = (
                self.executor.max_context,
                self.executor.num_blocks * self.executor.block_size,
            )
            try:
                built = build(
                    scaled_to(spec, context, kv_tokens) if spec.clip else spec,
                    self._prompts(),
                    context,
                    seed=seed,
                    kv_tokens=kv_tokens,
                    block_size=self.executor.block_size,
                    vocab_size=self.executor.vocab_size,
                    tokenize=text_to_ids(self.profile.model.name),
                )
            except TraceError as error:
                raise CliError(str(error)) from None
            except ValueError as error:
                raise refused(self.profile, error) from None
            self._check_fits(built)
            if len(self._workloads) >= _KEPT_WORKLOADS:
                del self._workloads[next(iter(self._workloads))]
            self._workloads[key] = built
        return self._workloads[key]

    def _check_fits(self, workload: Workload) -> None:
        """Refuses requests that the KV cache could not hold even alone, before anything is measured."""
        from tunebatch.engine.request import why_never_fits

        executor = self.executor
        longest = max(workload.patterns, key=lambda request: len(request.prompt) + request.max_tokens)
        why = why_never_fits(longest, executor.num_blocks, executor.block_size, executor.max_context)
        if why is not None:
            stored = (
                len(longest.prompt) + longest.max_tokens - 1
            )  # not the last token, which is only returned
            blocks = -(-stored // executor.block_size)
            raise CliError(
                f"{why}; the nearest that holds all requests: [device] num_blocks = {blocks} in a profile "
                f"or TUNEBATCH_DEVICE_NUM_BLOCKS={blocks}; or shorter requests, or [workload] clip = true"
            )

    def measure(
        self,
        chosen: Strategy,
        rate: float | None,
        seed: int | None = None,
        *,
        stop_early: bool = False,
        least_s: float = 0.0,
        glimpse_s: float | None = None,
    ) -> RunResult:
        """Serves the workload once; without a rate all requests arrive at once. See ``MeasureFn``."""
        paced = _at(rate, self.workload(seed, math.ceil((rate or 0.0) * least_s)))
        return self._measure(paced, chosen, stop_early, glimpse_s if rate is None else None)

    def as_asked(self, rate: float | None) -> Workload:
        """The workload at the given rate; without one by its own schedule, where the user chose one, or else
        all at once."""
        if rate is None and has_own_schedule(self.profile, self.spec):
            return self.workload()
        return _at(rate, self.workload())

    def measure_as_asked(self, chosen: Strategy, rate: float | None) -> RunResult:
        """Serves ``as_asked`` once."""
        return self._measure(self.as_asked(rate), chosen)

    def measure_first(self, chosen: Strategy, count: int) -> RunResult:
        """The first requests of the workload, all at once."""
        workload = self.workload().saturated()
        part = workload.patterns[:count]
        return self._measure(replace(workload, requests=part, patterns=part), chosen)

    def _measure(
        self, workload: Workload, chosen: Strategy, stop_early: bool = False, glimpse_s: float | None = None
    ) -> RunResult:
        from tunebatch.bench import NOTHING, measure

        return measure(
            workload,
            chosen,
            self.executor,
            slo=self.profile.slo if len(self.profile.slo) else None,
            clock=self._new_clock,
            stop_early=stop_early,
            glimpse_s=glimpse_s,
            model={**self.executor.model_info, "random_weights": self.has_random_weights},
            instruments=self.instruments or NOTHING,
            acceptance=self.profile.model.acceptance,
            overlap=None if self.profile.device.overlap else False,
        )

    def check_tokens(self, strategies: Sequence[Strategy]) -> str:
        """Serves a few requests under every strategy; returns what was compared, in one line.

        Loads the draft model first, where a strategy drafts with one.

        Raises:
            CliError: There is no draft model.
            ModelError: See ``load_draft``.
            TokenMismatchError: The strategies disagree.
        """
        from tunebatch.execute.torch.same_tokens import check_same_tokens

        self.load_draft_for(strategies)
        same = check_same_tokens(self.executor, list(strategies))
        ties = f", but for {same.num_ties} near ties that rounding decided" if same.num_ties else ""
        drafting = any(one.drafter is not None for one in strategies)
        drawn = "; drafts were accepted by tokens here" if drafting and self.profile.model.acceptance else ""
        return (
            f"same tokens: {same.num_requests} requests, {same.num_tokens} tokens, equal to generate under "
            f"{', '.join(same.strategies)}{ties}{drawn}"
        )

    def load_draft_for(self, strategies: Sequence[Strategy]) -> None:
        """Loads the draft model where a strategy drafts with one, and none is there yet.

        Raises:
            CliError: There is no draft model.
            ModelError: See ``load_draft``.
        """
        drafting = [one.name for one in strategies if one.drafter == "draft"]
        if not drafting or self.executor.drafter is not None:
            return
        check_draft(self.profile, drafting)
        from tunebatch.execute.torch.draft_model import load_draft

        model = self.profile.model
        name = "bundled" if model.draft == "auto" else model.draft
        load_draft(self.executor, name, backend=model.backend, graphs=self.profile.device.graphs)

    def describe(self, workload: Workload) -> list[str]:
        """The model, the traffic, and what was done to the traffic; a line each."""
        facts = self.executor.model_info
        shown = [
            str(facts[key]) for key in ("name", "dtype", "device", "attention_backend") if facts.get(key)
        ]
        return [
            f"model: {', '.join(shown)}",
            *_window_lines(facts.get("context_bound_by_window")),
            *_compile_lines(facts.get("torch_compile"), facts.get("forward")),
            *_graph_lines(facts.get("cuda_graphs")),
            *_kept_lines(facts.get("kept_free")),
            *self._drawn(),
            f"workload: {workload.description}",
            *(f"  {note}" for note in workload.notes),
        ]

    @property
    def has_random_weights(self) -> bool:
        """The model is a named shape."""
        from tunebatch.models.named_shape import named_shape

        return named_shape(self.profile.model.name) is not None

    def _drawn(self) -> list[str]:
        """What is drawn where the weights are random."""
        from tunebatch.report.speculation import SYNTHETIC, rates_text

        if not self.has_random_weights:
            return []
        told = ["  random weights: lengths are those asked for, as no token ends a text"]
        if self.profile.model.acceptance:
            told.append(
                f"  {SYNTHETIC} {rates_text(self.profile.model.acceptance)}: drafts are made and verified, "
                "but which are accepted is drawn, so the tokens that are timed are no model's own"
            )
        return told

    def _prompts(self) -> Any:
        from tunebatch.models.named_shape import named_shape
        from tunebatch.workload.prompts import CorpusPrompts, RandomPrompts

        if self.profile.model.name == "bundled":
            from tunebatch.models import bundled_corpus

            return CorpusPrompts(bundled_corpus())
        shape = named_shape(self.profile.model.name)
        return RandomPrompts(self.executor.vocab_size if shape is None else shape.num_ordinary)

    def _new_clock(self) -> Clock:
        from tunebatch.engine.clock import ReplayClock, WallClock

        return WallClock() if self.clock == "wall" else ReplayClock()


def _window_lines(bound: Sequence[int] | None) -> list[str]:
    if bound is None:
        return []
    window, own = bound
    return [
        f"  served up to {window:,} of its {own:,} tokens of context: its sliding window is longer than what "
        "is checked when a model loads, so no request goes beyond it"
    ]


def _compile_lines(told: dict[str, Any] | None, forward: str | None) -> list[str]:
    if told is None:
        return []
    if "without" in told:
        return [f"  without torch.compile: {told['without']}"]
    named = {"torch.compile": "compiled", "transformers": "eager", "compiled": "the kernels for CPUs"}
    times = ", ".join(f"{named.get(name, name)} {ms:,.1f} ms" for name, ms in told["ms"].items())
    faster = "compiled" if forward == "torch.compile" else "without the compiler"
    return [
        f"  prefill: {times} a step of {told['tokens']:,} tokens; all steps are computed {faster}; "
        f"compiling and measuring took {told['seconds']:.1f} s"
    ]


def _graph_lines(captured: dict[str, Any] | None) -> list[str]:
    if captured is None:
        return []
    without = f"; {captured['without']}" if "without" in captured else ""
    if not captured["graphs"]:
        return [f"  no CUDA graphs, every step is launched kernel by kernel{without}"]
    taken = f"{captured['graphs']} CUDA graphs captured in {captured['seconds']:.1f} s"
    return [f"  {taken}, {captured['mib']:,.0f} MiB{without}"]


def _kept_lines(kept: dict[str, Any] | None) -> list[str]:
    """Of the draft model; what the model's own graphs take is told with them."""
    from tunebatch.measure.shape_room import gib

    draft = (kept or {}).get("draft")
    if draft is None:
        return []
    named = {"weights": "weights", "step": "a step", "graphs": "CUDA graphs"}
    parts = ", ".join(f"{name} {gib(draft[part])}" for part, name in named.items() if draft[part])
    return [f"  kept free of the KV cache for the draft model: {parts} (predicted)"]


def _captures_shown(progress: Progress | None) -> Callable[[int, int], None]:
    """On a terminal every graph; elsewhere, where each were a line, that it has begun."""

    def shown(count: int, wanted: int) -> None:
        if progress is not None and (progress.live or count == 1):
            progress.status(f"capturing CUDA graphs: {count} of {wanted}")

    return shown


def _at(rate: float | None, workload: Workload) -> Workload:
    """At a rate, or all at once."""
    if rate is None:
        return workload.saturated()
    try:
        return workload.at_rate(rate)
    except ValueError as error:
        raise CliError(f"at {rate:g} requests/s: {error}") from None
