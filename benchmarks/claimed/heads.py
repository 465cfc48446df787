"""Grouped-query against multi-head attention in the same bytes of KV cache."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers

from claimed.bench import Bench, Side, middle, ratios, tokens_per_s
from claimed.claim import Claim, Figure, Finding, Table, from_to
from claimed.prefix import batch_while_others_wait, most_at_once
from tunebatch.engine.strategies import strategy
from tunebatch.execute.torch.load import serve
from tunebatch.measure.kv_memory import KvLayout, SequenceLengths, batches
from tunebatch.workload.lengths import Fixed
from tunebatch.workload.spec import WorkloadSpec

HEADS, HEAD_DIM, LAYERS = 32, 32, 2
KV_HEADS = {"MHA": 32, "GQA": 8}
PROMPT_TOKENS, OUTPUT_TOKENS = 64, 64
POOL_BYTES = 16 * 2**20
REQUESTS = 64
HEADER = (
    "attention | KV bytes a token | blocks | sequences at full length (predicted) | measured, while others "
    "wait | most in a step | output tokens/s"
)
SPEC = WorkloadSpec(
    name="equal lengths",
    arrivals="burst",
    num_requests=REQUESTS,
    prompt_lengths=Fixed(PROMPT_TOKENS),
    output_lengths=Fixed(OUTPUT_TOKENS),
)


def layout(form: str) -> KvLayout:
    """Of keys and values in float32."""
    return KvLayout(KV_HEADS[form], HEAD_DIM, (None,) * LAYERS, element_bytes=4)


def predicted(form: str) -> int:
    """Sequences that fit at their full length, by the arithmetic of `tunebatch plan`."""
    tokens = PROMPT_TOKENS + OUTPUT_TOKENS
    return batches(POOL_BYTES, layout(form), SequenceLengths("equal", np.array([tokens]), PROMPT_TOKENS)).mean


def measure(bench: Bench) -> Finding:
    chosen = strategy("continuous", {"max_batch_size": 64})
    sides: dict[str, Side] = {}
    for form in KV_HEADS:
        executor = _random_llama(form, bench.executor)
        sides[form] = Side(bench.workload(SPEC, REQUESTS, executor), chosen, executor=executor)
        bench.run(sides[form])  # the first steps of each shape choose their kernels
    turns = bench.turns(sides)
    figures = {
        "sequences at once": ratios(turns, "GQA", "MHA", batch_while_others_wait),
        "sequences at once, predicted": Figure((predicted("GQA") / predicted("MHA"),)),
        "output tokens/s": ratios(turns, "GQA", "MHA"),
    }
    rows: list[str] = []
    for form, results in turns.items():
        fit, blocks = layout(form), POOL_BYTES // layout(form).bytes_per_block
        batch, most = middle(results, batch_while_others_wait), middle(results, most_at_once)
        rows.append(
            f"{form}: {KV_HEADS[form]} of {HEADS} heads | {fit.bytes_per_token:,} | {blocks} | "
            f"{predicted(form)} | {batch:.1f} | {most:.0f} | {tokens_per_s(results)}"
        )
    return Finding(
        setting=f"{sides['MHA'].workload.description}; two Llamas with random weights, {LAYERS} layers, "
        f"width {HEADS * HEAD_DIM}, float32, {POOL_BYTES // 2**20} MiB of KV cache each; continuous, "
        "max_batch_size 64",
        figures=figures,
        why="a token of a quarter of the heads takes a quarter of the bytes; blocks are taken as sequences "
        "grow, so that more run at once than fit at full length; the throughput is "
        f"{figures['output tokens/s'].text()}, since a step of more sequences takes longer",
        tables=(Table(f"In {POOL_BYTES // 2**20} MiB of KV cache", HEADER, rows),),
    )


def _random_llama(form: str, like: Any) -> Any:
    """A small model whose prompts are those of the bundled one."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=HEADS * HEAD_DIM,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS[form],
        num_hidden_layers=LAYERS,
        intermediate_size=HEADS * HEAD_DIM,
        vocab_size=like.vocab_size,
        max_position_embeddings=512,
    )
    network = transformers.AutoModelForCausalLM.from_config(config).to(like.device).eval()
    num_blocks = POOL_BYTES // layout(form).bytes_per_block
    return serve(network, name=f"random {form}", block_size=layout(form).block_size, num_blocks=num_blocks)


CLAIM = Claim(
    "heads",
    "With 8 KV heads instead of 32, grouped-query attention runs 4 times as many sequences in the same "
    "memory.",
    (
        from_to("sequences at once", 3.5, 4.5, partly=2.0),
        from_to("sequences at once, predicted", 3.5, 4.5, partly=2.0),
    ),
    measure,
)
