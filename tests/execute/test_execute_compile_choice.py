"""Compiled or eager: what prefilled faster serves, is captured, and is told; failures leave eager."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from graph_stand_ins import Again, Dense
from tiny_models import BLOCK_SIZE, tiny

from tunebatch.engine.plan import OutOfDeviceMemoryError, StepPlan
from tunebatch.execute.torch import attention, compile_choice, fused
from tunebatch.execute.torch.attention.base import StepContext
from tunebatch.execute.torch.attention.reference import Reference
from tunebatch.execute.torch.compile_choice import COMPILED, compile_if_faster
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.graphs import captured
from tunebatch.execute.torch.graphs.buckets import decode_bucket
from tunebatch.execute.torch.load import serve

Step = tuple[str, int]


def loaded(**options: Any) -> TorchExecutor:
    options = {"backend": "reference", "num_blocks": 40, "max_slots": 4, **options}
    return serve(tiny(), name="tiny", block_size=BLOCK_SIZE, **options)


class Contest:
    """A model that is served by its own code, and the same code as what a compiler made of it."""

    def __init__(self, own_s: float, compiled_s: float) -> None:
        self.probe = loaded()
        self.own = self.probe.forward
        self.error = 0.0
        self.steps: list[Step] = []
        self._seconds = {"own": own_s, "compiled": compiled_s}

    def compiled(self, tokens: torch.Tensor, sampled_at: torch.Tensor, step: StepContext) -> torch.Tensor:
        return self.own(tokens, sampled_at, step)

    def new_executor(self, num_blocks: int) -> TorchExecutor:
        return TorchExecutor(
            self.probe.model,
            self.own,
            Reference().new_pools,
            num_blocks=num_blocks,
            block_size=BLOCK_SIZE,
            max_slots=self.probe.max_slots,
            max_context=self.probe.max_context,
            eos_token_ids=frozenset(),
            model_info={},
        )

    def seconds(self, executor: TorchExecutor, plan: StepPlan) -> float:
        """Every step is faster than the one before, and the first, as if it compiled, as fast as no other."""
        name = "compiled" if executor.forward == self.compiled else "own"
        turn = sum(one == (name, plan.num_slice_tokens) for one in self.steps)
        self.steps.append((name, plan.num_slice_tokens))
        return self._seconds[name] * (1 - 0.01 * turn) if turn else 1e-9

    def held(self, most_tokens: int = 300, seconds: Any = None) -> dict[str, Any]:
        return compile_if_faster(
            self.probe,
            self.compiled,
            self.new_executor,
            lambda: self.error,
            most_tokens,
            seconds or self.seconds,
        )


def test_the_faster_one_serves_and_both_times_are_told() -> None:
    one = Contest(own_s=0.014, compiled_s=0.012)
    told = one.held()
    assert one.probe.forward == one.compiled and told["forward"] == COMPILED
    # As many tokens as the steps of a CPU may have, in prompts that the context bounds.
    assert told["torch_compile"]["tokens"] == 300
    assert told["torch_compile"]["ms"] == {COMPILED: 11.4, "transformers": 13.3}
    timed = [step for step in one.steps if step[1] == 300]
    assert timed == [("compiled", 300), ("own", 300)] * 6


def test_eager_serves_where_it_is_as_fast() -> None:
    one = Contest(own_s=0.012, compiled_s=0.012)
    told = one.held()
    assert one.probe.forward == one.own and "forward" not in told
    assert told["torch_compile"]["ms"] == {COMPILED: 11.4, "transformers": 11.4}


def test_a_cpu_computes_only_as_many_tokens_as_take_a_moment() -> None:
    one = Contest(own_s=0.25, compiled_s=0.2)
    assert one.held()["torch_compile"]["tokens"] == 129
    assert one.steps[:2] == [("own", 64)] * 2


def test_where_memory_runs_out_fewer_tokens_are_timed() -> None:
    one = Contest(own_s=0.014, compiled_s=0.012)

    def seconds(executor: TorchExecutor, plan: StepPlan) -> float:
        if plan.num_slice_tokens > 80:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return one.seconds(executor, plan)

    assert one.held(seconds=seconds)["torch_compile"]["tokens"] == 75
    assert one.probe.forward == one.compiled


@pytest.mark.parametrize("error", [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
    OSError("ptxas is not there\nat all"),
])  # fmt: skip
def test_what_fails_leaves_eager_with_one_line(error: Exception) -> None:
    one = Contest(own_s=0.014, compiled_s=0.012)

    def seconds(*_: Any) -> float:
        raise error

    told = one.held(seconds=seconds)
    assert told == {"torch_compile": {"without": str(error).splitlines()[0]}}
    assert one.probe.forward == one.own


@pytest.mark.parametrize("wrong", [0.2, float("nan")])
def test_what_computes_something_else_is_not_served(wrong: float) -> None:
    one = Contest(own_s=0.014, compiled_s=0.012)
    one.error = wrong
    why = f"what it computes is wrong by {wrong:.2g} of the largest logit"
    assert one.held() == {"torch_compile": {"without": why}}
    assert one.probe.forward == one.own and not one.steps


@pytest.mark.parametrize("compiled_s", [0.012, 0.016])
def test_a_compiler_fuses_by_itself(monkeypatch: pytest.MonkeyPatch, compiled_s: float) -> None:
    one = Contest(own_s=0.014, compiled_s=compiled_s)
    is_fused = [True]
    monkeypatch.setattr(fused, "take_apart", lambda _: is_fused.append(False))
    monkeypatch.setattr(fused, "fuse", lambda _: is_fused.append(True))
    one.probe.model_info |= {"fused_norms": 5, "fused_rotary": 2, "fused_gates": 0}
    seen: set[tuple[str, bool]] = set()

    def seconds(executor: TorchExecutor, plan: StepPlan) -> float:
        seen.add(("compiled" if executor.forward == one.compiled else "own", is_fused[-1]))
        return one.seconds(executor, plan)

    faster = compiled_s < 0.014
    told = one.held(seconds=seconds)
    assert [told.get(fact) for fact in fused.FACTS] == ([0, 0, None] if faster else [None] * 3)
    assert seen == {("compiled", False), ("own", True)}
    assert is_fused[-1] is not faster


@pytest.fixture
def contest(monkeypatch: pytest.MonkeyPatch) -> Callable[[float, float], None]:
    """What a compiled and an eager step take from here on."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()

    def takes(compiled_s: float, eager_s: float) -> None:
        def seconds(executor: TorchExecutor, plan: StepPlan) -> float:
            executor.logits(plan)
            is_compiled = getattr(executor.forward, "__qualname__", "").startswith("compiled_forward")
            return compiled_s if is_compiled else eager_s

        monkeypatch.setattr(compile_choice, "step_seconds", seconds)

    return takes


@pytest.mark.parametrize(("compiled_s", "forward"), [(0.1, COMPILED), (0.3, "transformers")])
def test_graphs_capture_what_serves_the_other_steps(
    contest: Callable[[float, float], None], monkeypatch: pytest.MonkeyPatch, compiled_s: float, forward: str
) -> None:
    contest(compiled_s, 0.2)
    monkeypatch.setitem(attention.BACKENDS, "dense", Dense)
    monkeypatch.setattr("tunebatch.execute.torch.load.CAPTURABLE", {"dense"})
    made: list[Any] = []

    class Graphs(captured.Graphs):
        def __init__(self, forward: Any, inputs: Any) -> None:
            made.append(forward)
            super().__init__(forward, inputs)

    monkeypatch.setattr(captured, "Graphs", Graphs)
    monkeypatch.setattr(captured, "buckets_for", lambda _: [decode_bucket(2)])
    executor = loaded(backend="dense", compiler="eager", new_capture=Again)
    facts = executor.model_info
    assert facts["forward"] == forward and facts["cuda_graphs"]["graphs"] == 1
    assert made == [executor.forward]
    assert facts["torch_compile"]["ms"] == {COMPILED: 1e3 * compiled_s, "transformers": 200.0}
    # All that the KV cache holds.
    assert facts["torch_compile"]["tokens"] == 40 * BLOCK_SIZE
    assert facts["self_check_error"] < 1e-5
    # Once for steps of one token, which only what serves is compiled for, and once for all others.
    compiled = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert compiled == (2 if forward == COMPILED else 1)


def test_a_model_that_cannot_be_compiled_is_served_eagerly(contest: Callable[[float, float], None]) -> None:
    def broken(graph: Any, inputs: Any) -> Any:
        raise ValueError("no C++ compiler\nfound here")

    contest(0.1, 0.2)
    executor = loaded(compiler=broken)
    told = executor.model_info["torch_compile"]
    assert told == {"without": "llama cannot be compiled: no C++ compiler"}
    assert executor.model_info["forward"] == "transformers"
    assert executor.forward.__qualname__.startswith("transformers_forward")


def test_the_kernels_for_cpus_are_the_other_side_where_they_serve() -> None:
    one = Contest(own_s=0.012, compiled_s=0.014)
    one.probe.model_info["forward"] = "compiled"
    assert one.held()["torch_compile"]["ms"] == {COMPILED: 13.3, "compiled": 11.4}
    assert one.probe.forward == one.own


def test_memory_that_runs_out_in_the_check_is_told_as_that(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Reference, "attend", fails)
    with pytest.raises(OutOfDeviceMemoryError) as told:
        loaded()
    assert str(told.value) == (
        "tiny: out of device memory in the small steps that check a model when it loads; use a smaller model"
    )
