"""Greedy tokens equal ``generate`` for every strategy, architecture and backend that is claimed."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
import transformers
from execute_hang_ups import Lengths, hang_ups, hanging_up, serve_with
from tiny_models import BLOCK_SIZE, SHAPE

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import ReplayClock, VirtualClock
from tunebatch.engine.limits import LatencyLimits
from tunebatch.engine.plan import StepOutput, StepPlan
from tunebatch.engine.records import EndReason
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import STRATEGIES, Strategy, knobs_of, strategy
from tunebatch.execute.torch import same_tokens
from tunebatch.execute.torch.attention import BACKENDS
from tunebatch.execute.torch.compiled.decoder import LLAMA_LIKE
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import serve

SMALL = SHAPE | {
    "vocab_size": 199,
    "max_position_embeddings": 256,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
HEAD = {"head_dim": 8}
EXPERTS = {"num_local_experts": 4, "num_experts_per_tok": 2}
# Windows are shorter than the prompts, so that they are active.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", SMALL),
    "qwen2": (
        "Qwen2",
        SMALL
        | {
            "use_sliding_window": True,
            "sliding_window": 9,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "qwen3": ("Qwen3", SMALL | HEAD),
    "mistral": ("Mistral", SMALL | {"sliding_window": 9}),
    "mixtral": ("Mixtral", SMALL | EXPERTS | {"sliding_window": None}),
    "gemma2": (
        "Gemma2",
        SMALL
        | HEAD
        | {
            "sliding_window": 9,
            "attn_logit_softcapping": 2.0,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "gemma3": (
        "Gemma3",
        SMALL
        | HEAD
        | {
            "sliding_window": 9,
            "query_pre_attn_scalar": 8,
            "layer_types": ["sliding_attention", "full_attention"],
        },
    ),
    "phi3": ("Phi3", SMALL),
    "gpt2": ("GPT2", {"vocab_size": 199, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}),
    "opt": ("OPT", SMALL | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "gpt_neox": ("GPTNeoX", SMALL),
    "gpt_oss": (
        "GptOss",
        SMALL
        | HEAD
        | EXPERTS
        | {"sliding_window": 9, "layer_types": ["sliding_attention", "full_attention"]},
    ),
}
# Chunks of 7 end inside blocks of 4 tokens and inside windows of 9, at a different place each time.
KNOBS = {
    "max_batch_size": 5,
    "max_batched_tokens": 40,
    "max_delay_s": 0.001,
    "chunk_size": 7,
    "max_partial_prefills": 3,
    "min_batch_size": 2,
    "target": 0.9,
    "sort_by_length": 1,
}
# Triton's interpreter takes a second for a step; what it gives is tested beside its kernels.
ON_CPU = [backend for backend in BACKENDS if backend != "triton"]


def with_knobs(name: str, **others: float) -> Strategy:
    """A strategy with the knobs above, and the default of one that is not among them."""
    values = KNOBS | others
    return strategy(name, {knob.name: values.get(knob.name, knob.default) for knob in knobs_of(name)})


@cache
def network(name: str) -> Any:
    family, settings = ARCHITECTURES[name]
    config_class = getattr(transformers, "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config")
    settings = {key: value for key, value in settings.items() if family != "GPT2" or key != "hidden_size"}
    torch.manual_seed(3)
    model = getattr(transformers, "GPT2LMHeadModel" if family == "GPT2" else f"{family}ForCausalLM")(
        config_class(**settings)
    ).eval()
    with torch.no_grad():
        # Random initial weights are so small that logits are flat; larger ones separate the tokens.
        for parameter in model.parameters():
            parameter.mul_(3.0) if parameter.dim() > 1 else parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def executor(name: str, backend: str, num_blocks: int) -> TorchExecutor:
    model = network(name)
    model.set_attn_implementation("eager")
    return serve(model, name=name, backend=backend, block_size=BLOCK_SIZE, num_blocks=num_blocks, max_slots=8)


@cache
def expected(name: str) -> dict[int, list[int]]:
    reference = executor(name, "reference", 64)
    return {r.id: same_tokens.generate(reference, r.prompt, r.max_tokens) for r in requests(199)}


def requests(vocab_size: int) -> list[Request]:
    generator = torch.Generator().manual_seed(5)
    lengths = [(3, 20), (14, 9), (30, 14), (1, 25), (21, 1), (17, 18), (8, 12)]
    return [
        Request(
            id=i,
            prompt=tuple(torch.randint(3, vocab_size, (prompt,), generator=generator).tolist()),
            max_tokens=output,
            ignore_eos=True,
        )
        for i, (prompt, output) in enumerate(lengths)
    ]


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_tokens_equal_generate_under_preemption_and_cancellation(name: str, backend: str) -> None:
    # 20 blocks of 4 tokens: the longest sequence alone takes 11, so that batches must preempt.
    served = executor(name, backend, num_blocks=20)
    compiled = backend == "compiled" and name in LLAMA_LIKE
    assert served.model_info["forward"] == ("compiled" if compiled else "transformers")
    want = expected(name)
    preempted = 0
    for kind in STRATEGIES:
        chosen, found = with_knobs(kind), gone_by(kind)
        engine, blocks, phases = serve_with(served, chosen, hanging_up(requests(199), found))
        by_id = {request.id: request for request in engine.record().requests}
        preempted += sum(request.num_preemptions for request in by_id.values())
        for phase, (request_id, step) in found.items():
            gone = by_id.pop(request_id)
            assert (phases[step][request_id], gone.end_reason) == (phase, EndReason.CANCELLED), (kind, phase)
            # At the very step of the hang-up, before anything else was planned.
            assert gone.end_s == step and request_id in blocks.returned
            assert len(gone.output) > 1 if phase == "mid-decode" else gone.output == []
            assert gone.output == want[request_id][: len(gone.output)] and len(gone.output) < gone.max_tokens
        assert len(by_id) == 7 - len(found)
        for request in by_id.values():
            assert request.end_reason is EndReason.LENGTH
            assert request.output == want[request.id], (kind, request.id)
        assert engine.queues.kv.num_free == served.num_blocks
    assert preempted > 0


@cache
def gone_by(kind: str) -> dict[str, tuple[int, int]]:
    """Who hangs up when under a strategy; the same for all models, as only lengths matter."""
    sizes = Lengths(num_blocks=20, block_size=BLOCK_SIZE, max_slots=8, max_context=256)
    return hang_ups(sizes, with_knobs(kind), requests(199))


def test_clients_hang_up_in_every_phase_that_there_is() -> None:
    """Guards the cancellations above. Only chunks of a fixed size leave these prompts half computed."""
    chunks = {kind for kind in STRATEGIES if "mid-prefill" in gone_by(kind)}
    assert chunks >= {"chunked", "mixed"}
    for kind in STRATEGIES:
        assert {"mid-decode", "waiting"} <= gone_by(kind).keys(), kind


@pytest.mark.parametrize("backend", ON_CPU)
@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral", "gemma3"])
def test_greedy_tokens_equal_generate_with_hits_in_the_prefix_cache(name: str, backend: str) -> None:
    # 28 blocks of 4 tokens: few enough to preempt, enough to keep what the last ones leave.
    served = executor(name, backend, num_blocks=28)
    first = requests(199)
    turns = [tuple(r.prompt) + tuple(expected(name)[r.id]) for r in first]
    # The next turn of a conversation, and another question after the same beginning, twice.
    prompts = [(*turns[2], 5, 6, 7), (*turns[2][:18], 8, 9), (*turns[2][:18], 8, 9), (*turns[4][:17], 7)]
    follow_ups = [Request(7 + i, prompt, 9, ignore_eos=True) for i, prompt in enumerate(prompts)]
    want = [*expected(name).values(), *(same_tokens.generate(served, r.prompt, 9) for r in follow_ups)]
    preempted = 0
    for kind in ("continuous", "chunked", "mixed"):
        source = same_tokens.AllAtOnce(first, follow_ups)
        engine = engine_for(with_knobs(f"{kind}+prefix"), served, source, ReplayClock())
        record = engine.run()
        engine.queues.check_integrity()
        assert [request.output for request in record.requests] == want, kind
        assert sum(request.num_cached_tokens > 0 for request in record.requests) >= 3
        preempted += sum(request.num_preemptions for request in record.requests)
    assert preempted > 0


@pytest.mark.parametrize("name", ["llama", "gemma3"])
def test_greedy_tokens_equal_generate_with_automatic_chunks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    served = executor(name, "compiled", num_blocks=200)
    generator = torch.Generator().manual_seed(6)
    prompts = [torch.randint(3, 199, (60 + 5 * i,), generator=generator).tolist() for i in range(24)]
    traffic = [Request(i, tuple(prompt), 5, ignore_eos=True) for i, prompt in enumerate(prompts)]
    want = [same_tokens.generate(served, request.prompt, request.max_tokens) for request in traffic]
    execute = served.execute

    def timed(plan: StepPlan) -> StepOutput:
        """In a time that depends on the step alone, so that budgets do."""
        return replace(execute(plan), duration_s=1e-3 + 1e-5 * (plan.num_decodes + plan.num_slice_tokens))

    monkeypatch.setattr(served, "execute", timed)
    # Every step takes longer than the second limit, so that chunks become as small as they may.
    for limits in (LatencyLimits(), LatencyLimits(tpot_s=1e-6)):
        chosen = with_knobs("mixed", chunk_size=0, max_batch_size=8)
        served.reset()
        source = same_tokens.AllAtOnce(traffic)
        record = engine_for(chosen, served, source, VirtualClock(), limits=limits).run()
        assert [request.output for request in record.requests] == want, limits
        assert sum(map(len, record.steps.slices)) > len(traffic), "no prompt was cut"
        budgets = Counter(record.steps.num_prefill_tokens)
        assert budgets[256] > 0 and (budgets[16] > 20) is (limits.tpot_s is not None), budgets


def test_the_expected_tokens_are_not_all_alike() -> None:
    """Guards the comparison above: a constant output would be right for many wrong reasons."""
    for name in ARCHITECTURES:
        outputs = expected(name)
        assert len({token for output in outputs.values() for token in output}) >= 5, name
