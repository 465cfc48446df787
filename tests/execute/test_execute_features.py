"""Every feature with every policy gives the tokens of ``generate``, and drafts leave distributions alone."""

from __future__ import annotations

import copy
import dataclasses
import itertools
import random
from functools import cache
from typing import Any

import pytest
import torch
from execute_hang_ups import StepClock
from scipy.stats import chisquare
from test_execute_tokens import ARCHITECTURES, executor, network, with_knobs
from tiny_models import BLOCK_SIZE, tiny

from tunebatch.engine import assemble
from tunebatch.engine.assemble import engine_for
from tunebatch.engine.clock import Clock, ReplayClock
from tunebatch.engine.records import EndReason, RunRecord
from tunebatch.engine.request import Request, Sampling
from tunebatch.engine.strategies import STRATEGIES, strategy
from tunebatch.execute.torch import same_tokens
from tunebatch.execute.torch.draft_model import DraftModel, load_draft
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import ModelError, serve

FEATURES = ("+prefix", "+ngram", "+draft", "+prefix+ngram", "+prefix+draft")
# Two with windows, one of them in every other layer and with soft-caps; one with learnt positions.
CHOSEN = ("llama", "mistral", "gemma2", "gpt2")
SHARED = (7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27)


def requests() -> list[Request]:
    """They begin alike, or repeat themselves, so that there is something to share and to look up."""
    prompts = [
        SHARED,
        (*SHARED, 30, 31),
        SHARED[:9] * 2,
        (40, 41, 42) * 7,
        (*SHARED, 50),
        (60,),
        (40, 41) * 4,
    ]
    lengths = [20, 14, 9, 25, 1, 22, 12]
    return [
        Request(id=i, prompt=prompt, max_tokens=length, ignore_eos=True)
        for i, (prompt, length) in enumerate(zip(prompts, lengths, strict=True))
    ]


@cache
def expected(name: str) -> dict[int, list[int]]:
    reference = executor(name, "reference", 64)
    return {one.id: same_tokens.generate(reference, one.prompt, one.max_tokens) for one in requests()}


def with_draft(name: str, backend: str, num_blocks: int) -> TorchExecutor:
    """A model with a draft that is the same, but for some noise: at times it is right."""
    noisy = copy.deepcopy(network(name))
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(0.15 * parameter.std() * torch.randn_like(parameter))
    noisy.set_attn_implementation("eager")
    served = executor(name, backend, num_blocks)
    served.drafter = DraftModel(
        serve(noisy, name="draft", backend=backend, block_size=BLOCK_SIZE, num_blocks=num_blocks, max_slots=8)
    )
    return served


def serve_all(
    served: TorchExecutor, name: str, traffic: list[Request], clock: Clock | None = None, **knobs: float
) -> RunRecord:
    chosen = with_knobs(name, num_drafts=3, **knobs)
    served.reset()
    engine = engine_for(chosen, served, same_tokens.AllAtOnce(traffic), clock or ReplayClock())
    while engine.step():
        engine.queues.check_integrity()
    return engine.record()


@pytest.mark.parametrize(("name", "backend"), [
    *((name, "compiled") for name in CHOSEN),
    # Of all that an architecture asks of attention gemma2 has the most.
    *((name, "reference") for name in ("llama", "gemma2")),
    *(pytest.param(name, "reference", marks=pytest.mark.slow) for name in ("mistral", "gpt2")),
])  # fmt: skip
def test_greedy_tokens_equal_generate_with_every_feature(name: str, backend: str) -> None:
    assert name in ARCHITECTURES
    served = with_draft(name, backend, num_blocks=20)
    want = expected(name)
    for features in FEATURES:
        preempted = hits = accepted = rejected = 0
        for kind in STRATEGIES:
            traffic = requests()
            traffic[1] = dataclasses.replace(traffic[1], cancel_at_s=1e-3)
            record = serve_all(served, kind + features, traffic)
            for request in record.requests:
                preempted += request.num_preemptions
                hits += request.num_cached_tokens
                accepted += request.num_accepted
                rejected += request.num_drafted - request.num_accepted
                cancelled = request.end_reason is EndReason.CANCELLED
                told = want[request.id][: len(request.output)] if cancelled else want[request.id]
                assert request.output == told, (kind + features, request.id)
                assert len(request.token_times_s) == len(request.output)
        assert preempted > 0, features
        assert (hits > 0) == ("prefix" in features), features
        assert (accepted > 0) == (features not in ("+prefix",)), features
        assert (rejected > 0) == (accepted > 0), features


@pytest.mark.parametrize("size", [1, 3, 16])
@pytest.mark.parametrize("kind", ["chunked", "mixed"])
def test_greedy_tokens_equal_generate_with_features_in_chunks_of_any_size(kind: str, size: int) -> None:
    served = with_draft("llama", "compiled", num_blocks=20)
    record = serve_all(served, f"{kind}+prefix+draft", requests(), chunk_size=size)
    assert {one.id: one.output for one in record.requests} == expected("llama")
    chunks = [chunk for step in record.steps.slices for chunk in step]
    assert max(count for *_, count in chunks) <= size
    lengths = [one.num_prompt_tokens for one in record.requests]
    assert any(start + count < lengths[request_id] for request_id, _, start, count in chunks), "none was cut"
    assert sum(one.num_cached_tokens for one in record.requests) > 0
    accepted, drafted = (
        sum(getattr(one, key) for one in record.requests) for key in ("num_accepted", "num_drafted")
    )
    assert 0 < accepted < drafted


def test_greedy_tokens_equal_generate_when_clients_hang_up_at_any_time() -> None:
    """By the number of steps, drawn anew for each strategy: half of the clients, and some after their end."""
    served = with_draft("llama", "compiled", num_blocks=20)
    want, rng = expected("llama"), random.Random(8)
    combined = ("+prefix", "+prefix+ngram", "+prefix+draft")
    waiting = computing = answering = 0
    for _, kind, features in itertools.product(range(4), STRATEGIES, combined):
        last = 60 if kind == "sequential" else 25
        traffic = [
            dataclasses.replace(one, cancel_at_s=float(rng.randrange(last)) if rng.random() < 0.5 else None)
            for one in requests()
        ]
        record = serve_all(served, kind + features, traffic, StepClock())
        for asked, got in zip(traffic, record.requests, strict=True):
            if got.end_reason is not EndReason.CANCELLED:
                assert got.output == want[got.id], (kind + features, got.id)
                continue
            assert got.end_s == asked.cancel_at_s
            assert got.output == want[got.id][: len(got.output)], (kind + features, got.id)
            waiting += got.first_scheduled_s is None
            computing += got.first_scheduled_s is not None and not got.output
            answering += bool(got.output)
    assert min(waiting, computing, answering) > 0, (waiting, computing, answering)


class Skewed:
    """Drafts the same token again and again; the target takes it at times."""

    num_computed = num_reused = 0

    def reset(self) -> None: ...

    def propose(self, wanted: Any, generation: Any) -> list[tuple[int, ...]]:
        return [(1,) * count for _, count in wanted]


def seven_words(sharpness: float) -> Any:
    model = tiny("llama", vocab_size=7, max_position_embeddings=32)
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
    return model


def small_draft() -> DraftModel:
    """A model of its own, whose greedy guesses are at times what the target says."""
    network = seven_words(8.0)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.5 * parameter.std() * torch.randn_like(parameter))
    return DraftModel(serve(network, name="draft", block_size=BLOCK_SIZE, num_blocks=512, max_slots=64))


class Changing:
    """Another depth in every step, down to none, as automatic ones may be; whatever steps take."""

    def __init__(self) -> None:
        self._depths = itertools.cycle((3, 0, 1, 4, 2))

    def choose(self, batch: int) -> int:
        return next(self._depths)

    def took(self, batch: int, depth: int, duration_s: float) -> None: ...

    def verified(self, depth: int, batch: int, accepted: list[int]) -> None: ...

    def table(self) -> list[tuple[int, int, int]]:
        return []


@pytest.mark.parametrize(
    ("drafter", "num_drafts"),
    [
        *((drafter, count) for drafter in ("ngram", "skewed", "model") for count in (1, 2, 3, 4, 5)),
        ("model", 0),
    ],
)
def test_sampled_tokens_have_the_targets_distribution_with_drafts(
    drafter: str, num_drafts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On seven words, whatever is drafted: the third token of many answers against what it should be."""
    monkeypatch.setattr(assemble, "Auto", Changing)
    model = seven_words(8.0)
    served = serve(model, name="tiny", block_size=BLOCK_SIZE, num_blocks=512, max_slots=64)
    served.drafter = small_draft() if drafter == "model" else Skewed()
    feature = "ngram" if drafter == "ngram" else "draft"
    prompt = (2, 5, 1, 3, 2, 5)
    traffic = [
        Request(i, prompt, 6, sampling=Sampling(temperature=1.0, seed=i), ignore_eos=True)
        for i in range(1500)
    ]
    values = {"max_batch_size": 64, "max_batched_tokens": 512, "num_drafts": num_drafts}
    drafted = engine_for(
        strategy(f"continuous+{feature}", values), served, same_tokens.AllAtOnce(traffic), ReplayClock()
    ).run()
    assert sum(one.num_accepted for one in drafted.requests) > 100
    assert sum(one.num_drafted - one.num_accepted for one in drafted.requests) > 100
    counts = torch.bincount(torch.tensor([one.output[2] for one in drafted.requests]), minlength=7)
    exact = third_token_probabilities(model, prompt)
    assert chisquare(counts.numpy(), exact.numpy() * len(traffic)).pvalue > 1e-3
    # Noise hangs on seed and position alone, so the tokens are even those without drafts.
    del values["num_drafts"]
    plain = engine_for(
        strategy("continuous", values), served, same_tokens.AllAtOnce(traffic), ReplayClock()
    ).run()
    assert [one.output for one in plain.requests] == [one.output for one in drafted.requests]


@torch.inference_mode()
def third_token_probabilities(model: Any, prompt: tuple[int, ...]) -> torch.Tensor:
    """Over all pairs of tokens before it, by the model's own attention."""
    model.set_attn_implementation("eager")
    pairs = torch.cartesian_prod(torch.arange(7), torch.arange(7))
    ids = torch.cat([torch.tensor(prompt).expand(49, -1), pairs], 1)
    probabilities = model(ids).logits.softmax(-1).double()
    model.set_attn_implementation("tunebatch")
    first = probabilities[:, len(prompt) - 1].gather(1, pairs[:, :1])
    second = probabilities[:, len(prompt)].gather(1, pairs[:, 1:])
    exact = (first * second * probabilities[:, -1]).sum(0)
    return exact / exact.sum()


def test_a_draft_with_other_tokens_is_refused(tmp_path: Any) -> None:
    served = serve(tiny("llama"), name="tiny", block_size=BLOCK_SIZE, num_blocks=32)
    tiny("llama", vocab_size=50).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="vocabulary of 50 tokens, the target's has 99"):
        load_draft(served, str(tmp_path))
