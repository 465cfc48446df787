"""The model's forward as it is, or through torch.compile: whichever computed a prefill faster just now.

That one computes all steps, and is what graphs capture: as the two round differently, a token would otherwise
hang on whether its step had a graph.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from tunebatch.engine.plan import StepPlan
from tunebatch.execute.torch import fused
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.forward import Forward
from tunebatch.execute.torch.model_error import ModelError
from tunebatch.execute.torch.out_of_memory import out_of_memory, ran_out
from tunebatch.execute.torch.peak_step import lengths_of, plan_of
from tunebatch.execute.torch.selfcheck import TOLERANCE

# (an executor, a step) -> seconds that the step takes
Timer = Callable[[TorchExecutor, StepPlan], float]

COMPILED = "torch.compile"
# As many as a step may have by default: too many for a graph.
PREFILL_TOKENS = 2048
_ROUNDS = 5
# On a CPU a step has so many tokens first, and then as many as it computes in that time.
_FIRST_TOKENS, _CPU_STEP_S = 64, 0.5


@dataclass(frozen=True, slots=True)
class _Way:
    """A forward, and the state of the model that it computes in."""

    forward: Forward
    state: Callable[[], AbstractContextManager[None]]


def step_seconds(executor: TorchExecutor, plan: StepPlan) -> float:
    """Of one step, from the plan to its logits on the device."""
    _wait(executor.device)
    started = time.perf_counter()
    executor.logits(plan)
    _wait(executor.device)
    return time.perf_counter() - started


def compile_if_faster(
    probe: TorchExecutor,
    compiled: Forward,
    new_executor: Callable[[int], TorchExecutor],
    worst_error: Callable[[], float],
    most_tokens: int = PREFILL_TOKENS,
    seconds: Timer | None = None,
) -> dict[str, Any]:
    """Gives the probe the compiled forward, if that computes what the model computes, and is faster.

    What cannot be compiled, or fails, leaves the probe as it was.

    Args:
        probe: Whose forward is the other one.
        new_executor: Makes one with so many blocks, for the step that is timed.
        worst_error: Of the probe's logits, relative to the largest; see `selfcheck.worst_error`.
        most_tokens: Of that step; fewer where the device lacks time or memory for them.
        seconds: By default `step_seconds`.

    Returns:
        Facts for result files: those of the forward that the probe has now; and ``torch_compile``: how many
        ``tokens`` the step had, the ``ms`` of each forward, best of a few that took turns, and in how many
        ``seconds`` that was found; or ``without``, why nothing is compiled, in one line.
    """
    model, own, own_name = probe.model, probe.forward, str(probe.model_info["forward"])
    started = time.perf_counter()
    replaced = [fact for fact in fused.FACTS if probe.model_info.get(fact)]
    apart = partial(_apart, model) if replaced else nullcontext
    try:
        with apart():
            probe.forward = compiled
            error = worst_error()
        if not error <= TOLERANCE[model.dtype]:
            raise ModelError(f"what it computes is wrong by {error:.2g} of the largest logit")
        ways = {COMPILED: _Way(compiled, apart), own_name: _Way(own, nullcontext)}
        tokens, best_s = _best(ways, new_executor, most_tokens, seconds or step_seconds)
        faster = best_s[COMPILED] < best_s[own_name]
        if faster:
            with apart():  # steps of one token are compiled apart, and not in mid-measurement
                probe.logits(plan_of(probe, [1], [1]))
    except Exception as failure:  # of compilers, of drivers, of what they made
        probe.forward = own
        _give_back(probe.device, failure)
        probe.reset()
        why = (str(failure).strip() or type(failure).__name__).splitlines()[0]
        return {"torch_compile": {"without": why}}
    told = {
        "tokens": tokens,
        "ms": {name: round(1e3 * best, 3) for name, best in best_s.items()},
        "seconds": round(time.perf_counter() - started, 3),
    }
    probe.reset()
    if not faster:
        probe.forward = own
        return {"torch_compile": told}
    fused.take_apart(model)
    none_is = dict.fromkeys(replaced, 0)
    return {"forward": COMPILED, **none_is, "self_check_error": error, "torch_compile": told}


def _best(
    ways: dict[str, _Way], new_executor: Callable[[int], TorchExecutor], num_tokens: int, seconds: Timer
) -> tuple[int, dict[str, float]]:
    """How many tokens the step had, and the least that it took each way.

    Raises:
        RuntimeError: Not even a small step could be computed.
    """
    device = new_executor(1).device
    if device.type == "cpu":
        *_, own = ways
        first, took = _timed({own: ways[own]}, new_executor, min(_FIRST_TOKENS, num_tokens), 1, seconds)
        num_tokens = min(num_tokens, max(first, int(first * _CPU_STEP_S / took[own])))
    while True:
        try:
            return _timed(ways, new_executor, num_tokens, _ROUNDS, seconds)
        except RuntimeError as error:
            if not ran_out(error) or num_tokens < 2 * _FIRST_TOKENS:
                raise
            _give_back(device, error)
        num_tokens //= 2


def _timed(
    ways: dict[str, _Way],
    new_executor: Callable[[int], TorchExecutor],
    num_tokens: int,
    rounds: int,
    seconds: Timer,
) -> tuple[int, dict[str, float]]:
    sizes = new_executor(1)
    lengths = lengths_of(sizes, num_tokens)
    blocks = [-(-count // sizes.block_size) for count in lengths]
    executor = new_executor(sum(blocks))
    plan = plan_of(executor, lengths, blocks)
    best_s = dict.fromkeys(ways, float("inf"))
    for turn in range(1 + rounds):
        for name, way in ways.items():
            executor.forward = way.forward
            with way.state():
                step_s = seconds(executor, plan)
            if turn:  # the first compiles, and makes the pools
                best_s[name] = min(best_s[name], step_s)
    return plan.num_slice_tokens, best_s


@contextmanager
def _apart(model: Any) -> Iterator[None]:
    """While it lasts, all modules compute by their own code, which a compiler fuses by itself."""
    fused.take_apart(model)
    try:
        yield
    finally:
        fused.fuse(model)


def _give_back(device: torch.device, failure: Exception) -> None:
    """The memory of a step that did not fit."""
    if isinstance(failure, RuntimeError) and ran_out(failure):
        out_of_memory(device, failure, "")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
