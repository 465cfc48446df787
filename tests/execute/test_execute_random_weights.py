"""Random weights of published shapes: made in their dtype, good enough to be checked, and served as any."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from tiny_models import BLOCK_SIZE
from transformers import AutoConfig, AutoModelForCausalLM

from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import ReplayClock
from tunebatch.engine.records import RunRecord
from tunebatch.engine.request import Request
from tunebatch.engine.speculation.acceptance import SyntheticAcceptance
from tunebatch.engine.strategies import strategy
from tunebatch.execute.torch import load, selfcheck
from tunebatch.execute.torch.draft_model import load_draft
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import ModelError, load_executor
from tunebatch.execute.torch.random_weights import random_network
from tunebatch.execute.torch.same_tokens import AllAtOnce, check_same_tokens, generate
from tunebatch.models.named_shape import named_shape

SMALL = {
    "vocab_size": 512,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 128,
    "max_position_embeddings": 256,
    **dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), 1),
}
OWN = {
    "gpt2": {"n_embd": 64, "n_head": 4, "n_positions": 256},
    "mixtral-8x7b": {"num_local_experts": 4},
    "gpt-oss-20b": {"num_local_experts": 4},
    "qwen3-30b-a3b": {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
}
NAMES = [
    "llama-3.1-8b",
    "llama-3.2-1b",
    "llama-2-7b",
    "mistral-7b",
    "qwen2.5-0.5b",
    "qwen3-0.6b",
    "gemma-2-2b",
    "gemma-3-1b",
    "phi-3-mini",
    "gpt2",
    *OWN,
]
TARGET, DRAFT = "llama-8m:2-layers", "llama-8m:1-layers"


def narrow(name: str, layers: int = 2) -> dict[str, Any]:
    """The shape with few and narrow layers, and all that its family is special by."""
    shape = named_shape(f"{name}:{layers}-layers")
    assert shape is not None
    small = {"vocab_size": 512, "bos_token_id": 1, "eos_token_id": 1} if name == "gpt2" else SMALL
    return {**shape.config, **small, **OWN.get(name, {})}


@pytest.mark.parametrize("name", dict.fromkeys(NAMES))
@torch.inference_mode()
def test_a_family_gets_weights_whose_answers_differ(name: str) -> None:
    config = narrow(name)
    network = random_network(config, torch.bfloat16, "cpu")
    usual = AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.bfloat16)
    assert {n: p.dtype for n, p in network.named_parameters()} == {
        n: p.dtype for n, p in usual.named_parameters()
    }
    buffers = dict(network.named_buffers())
    assert buffers.keys() == dict(usual.named_buffers()).keys()
    for key, value in usual.named_buffers():
        assert torch.equal(value, buffers[key]), key
    tied = network.get_output_embeddings().weight is network.get_input_embeddings().weight
    assert tied == AutoConfig.for_model(**config).tie_word_embeddings
    text = selfcheck.prompts(512, 200)[2]
    logits = network(torch.tensor([text])).logits[0].float()
    assert logits.isfinite().all()
    likeliest = logits.argmax(-1).tolist()
    assert len(set(likeliest)) > len(text) // 2
    assert sum(a == b for a, b in zip(likeliest, text, strict=True)) < len(text) // 4, "it repeats itself"


def test_the_same_weights_at_each_call_and_the_callers_noise_untouched() -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    one, two = (random_network(narrow("qwen3-0.6b"), torch.float32, "cpu") for _ in range(2))
    assert torch.equal(torch.get_rng_state(), before)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    assert one.config.eos_token_id is None and one.generation_config.eos_token_id is None


@pytest.mark.parametrize("name", ["llama-3.1-8b", "llama-3.2-1b", "qwen3-8b"])
def test_sixteen_bits_of_a_deep_model_round_far_less_than_a_wrong_mask(name: str) -> None:
    config = {**narrow(name), "num_hidden_layers": 32, "hidden_size": 128, "head_dim": 32}
    network = random_network(config, torch.bfloat16, "cpu")
    text = selfcheck.prompts(512, 200)[2:]
    rounded = selfcheck.own_logits(network, text)[0].float()
    exact = selfcheck.own_logits(network.float(), text)[0]
    assert (rounded - exact).abs().max() < 0.02 * exact.abs().max()


@pytest.fixture(scope="module")
def pair() -> TorchExecutor:
    executor = load_executor(
        TARGET, device="cpu", backend="reference", block_size=BLOCK_SIZE, num_blocks=256, max_slots=8
    )
    load_draft(executor, DRAFT, backend="reference")
    return executor


def test_a_shape_is_loaded_by_name_and_says_that_its_weights_are_random(pair: TorchExecutor) -> None:
    facts = pair.model_info
    assert facts["name"] == f"{TARGET} (random weights)" and facts["dtype"] == "float32"
    assert facts["draft"]["name"] == f"{DRAFT} (random weights)" and facts["draft"]["dtype"] == "bfloat16"
    assert pair.eos_token_ids == frozenset()
    same = check_same_tokens(pair, [strategy(f"continuous{one}") for one in ("", "+ngram", "+draft")])
    assert same.num_tokens == 7 * 16


def drafted(pair: TorchExecutor, name: str, *rates: float) -> tuple[list[Request], RunRecord]:
    traffic = [
        Request(i, tuple(range(10 + i, 30 + 3 * i)), 12 + i, ignore_eos=True) for i in range(5)
    ]  # fmt: skip
    pair.reset()
    chosen = strategy(name, {"num_drafts": 3, "max_batch_size": 4})
    acceptance = SyntheticAcceptance(rates, seed=1)
    engine = engine_for(chosen, pair, AllAtOnce(traffic), ReplayClock(), acceptance=acceptance)
    return traffic, engine.run()


@pytest.mark.parametrize("name", ["continuous+ngram", "continuous+draft", "mixed+prefix+draft"])
def test_acceptance_is_as_drawn_and_the_target_goes_on_from_what_was_accepted(
    pair: TorchExecutor, name: str
) -> None:
    """Every token that is no accepted draft is what the model says after all tokens before it."""
    traffic, run = drafted(pair, name, 0.6)
    drawn = SyntheticAcceptance((0.6,), seed=1)
    for request, served in zip(traffic, run.requests, strict=True):
        assert len(served.output) == request.max_tokens
        at, accepted = 0, 0
        while at < request.max_tokens:
            text = [*request.prompt, *served.output[:at]]
            assert served.output[at : at + 1] == generate(pair, text, 1), (request.id, at)
            count = min(3, request.max_tokens - at - 2)
            count = drawn.num_accepted(request.id, len(text) + 1, count) if count > 0 else 0
            accepted += count
            at += 1 + count
        assert served.num_accepted == accepted
    assert 0 < sum(one.num_accepted for one in run.requests) < sum(one.num_drafted for one in run.requests)


def test_with_no_draft_accepted_tokens_are_the_models_own(pair: TorchExecutor) -> None:
    traffic, run = drafted(pair, "continuous+draft", 0.0)
    assert sum(one.num_drafted for one in run.requests) > 0 == sum(one.num_accepted for one in run.requests)
    for request, served in zip(traffic, run.requests, strict=True):
        assert served.output == generate(pair, request.prompt, request.max_tokens)


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_draft_that_is_refused_by_luck_alone_may_be_what_the_target_says(rate: float) -> None:
    """A draft model that is the target's twin: what was drawn as rejected comes true nevertheless."""
    twins = load_executor(
        TARGET, device="cpu", backend="reference", block_size=BLOCK_SIZE, num_blocks=256, max_slots=8
    )
    load_draft(twins, TARGET, dtype="float32", backend="reference")
    traffic, run = drafted(twins, "continuous+draft", rate)
    assert sum(one.num_accepted for one in run.requests) < sum(one.num_drafted for one in run.requests)
    for request, served in zip(traffic, run.requests, strict=True):
        assert served.output == generate(twins, request.prompt, request.max_tokens)


def test_what_does_not_fit_is_refused_before_it_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "random_network", lambda *_: pytest.fail("it was made"))
    monkeypatch.setattr(load, "room_bytes", lambda device, utilization: 2**30)
    with pytest.raises(ModelError, match=r"llama-2-7b in float32: .* needed .* 1 GiB free; the nearest that"):
        load_executor("llama-2-7b", device="cpu")
    with pytest.raises(ModelError, match=r"smollm2-135m in bfloat16 and llama-3\.2-1b in bfloat16"):
        load_executor("smollm2-135m", device="cpu", dtype="bfloat16", draft="llama-3.2-1b")
    with pytest.raises(ModelError, match=r"KV cache 9\d+ GiB"):
        load_executor("llama-8m", device="cpu", num_blocks=10**7)


def test_an_unknown_name_is_told_with_the_nearest_shape() -> None:
    with pytest.raises(ModelError, match=r"no such folder or named shape; did you mean 'llama-8m'\?"):
        load_executor("lama-8m", device="cpu")
