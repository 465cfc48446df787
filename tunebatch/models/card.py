"""Measures the shipped pair and writes what came out into its model card."""

from __future__ import annotations

import platform
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaForCausalLM

from tunebatch.models import pair
from tunebatch.models.acceptance import (
    Acceptance,
    draw_prompts,
    greedy,
    heldout_loss,
    measure_acceptance,
    repeated_share,
)
from tunebatch.models.corpus import HELDOUT_PERCENT, VOCAB_SIZE, TokenDocuments

COMMAND = "python -m tunebatch.models.train"
PROMPTS, NEW_TOKENS = 512, 64


@dataclass(frozen=True)
class Split:
    """Sizes of the two sides of the corpus."""

    train_files: int
    train_documents: int
    train_tokens: int
    heldout_files: int
    heldout_documents: int
    heldout_tokens: int


def corpus_licence(stdlib: Path) -> str:
    """The corpus's notice with the PSF licence as this interpreter's installation carries it."""
    notice = (
        "corpus.safetensors holds source files of CPython's standard library\n"
        f"(version {platform.python_version()}), and the models and the tokenizer beside it were trained on\n"
        "others of its files. Copyright (c) Python Software Foundation; All Rights Reserved.\n"
        "Some files carry notices of their own, which are kept in the text.\n"
        "Changes: the files were cut into top-level blocks, trailing blanks and repeated blank lines\n"
        "between blocks were dropped, and the text was turned into token numbers.\n\n"
    )
    licence = next((p for p in (stdlib / "LICENSE.txt", stdlib / "LICENSE") if p.exists()), None)
    if licence is None:
        return (
            notice
            + "Licence: Python Software Foundation License Version 2, https://docs.python.org/3/license.html\n"
        )
    text = licence.read_text(encoding="utf-8")
    begin = text.index("PYTHON SOFTWARE FOUNDATION LICENSE VERSION 2")
    end = text.index("BEOPEN.COM LICENSE AGREEMENT", begin)
    return notice + text[begin:end].rstrip() + "\n"


@torch.inference_mode()
def step_milliseconds(
    target: LlamaForCausalLM, draft: LlamaForCausalLM, batch: int, drafts: int = 3, rounds: int = 60
) -> tuple[float, float]:
    """Median wall times of a decode step of target and draft, ``batch`` sequences after 256 tokens.

    They are timed as speculative decoding calls them, ``drafts`` draft steps after each target step:
    timed alone, the draft would keep its weights in the caches that the target's step clears.
    """
    ids = torch.randint(1, VOCAB_SIZE, (batch, 256), generator=torch.Generator().manual_seed(0))
    caches = {m: m(ids, use_cache=True, logits_to_keep=1).past_key_values for m in (target, draft)}
    times: dict[LlamaForCausalLM, list[float]] = {target: [], draft: []}
    for _ in range(rounds):
        for model, steps in ((target, 1), (draft, drafts)):
            begin = time.perf_counter()
            for _ in range(steps):
                model(ids[:, -1:], past_key_values=caches[model], use_cache=True)
            times[model].append((time.perf_counter() - begin) / steps)
            caches[model].crop(-steps)
    slow, quick = (1e3 * sorted(times[m])[rounds // 2] for m in (target, draft))
    return slow, quick


def _acceptance_rows(measured: list[Acceptance]) -> str:
    rows = []
    for a in measured:
        places = " / ".join(f"{100 * p:.1f}" for p in a.per_position)
        rows.append(f"| {a.k} | {a.rounds} | {100 * a.share:.1f} % | {a.tokens_per_round:.2f} | {places} |")
    return "\n".join(rows)


def _loss_rows(target: LlamaForCausalLM, draft: LlamaForCausalLM, heldout: TokenDocuments) -> str:
    rows = []
    for length in (256, 512, 2048):
        losses = [heldout_loss(m, heldout, length, len(heldout.tokens)) for m in (target, draft)]
        rows.append(f"| {length} | {losses[0]:.3f} | {losses[1]:.3f} |")
    return "\n".join(rows)


def _step_rows(target: LlamaForCausalLM, draft: LlamaForCausalLM) -> str:
    rows = []
    for batch in (1, 8, 32):
        slow, quick = step_milliseconds(target, draft, batch)
        rows.append(f"| {batch} | {slow:.2f} | {quick:.2f} | {slow / quick:.1f} |")
    return "\n".join(rows)


def _training_rows(records: dict[str, dict]) -> str:
    target, text, own = records["target"], records["draft_text"], records["draft"]
    rate = target["tokens"] / target["seconds"]
    return (
        f"- Target: {target['steps']} steps of 4096 tokens, {target['tokens'] / 1e6:.2f}M tokens in "
        f"{target['seconds'] / 60:.1f} min ({rate:.0f} tokens/s); windows of 256, 512, then 2048 tokens.\n"
        f"- Draft on library text: {text['steps']} steps of 4096 tokens in {text['seconds'] / 60:.1f} min.\n"
        f"- Draft on the target's own greedy output: {own['written_tokens']} tokens written by the target "
        f"after training prompts, {own['steps']} steps over them in {own['seconds'] / 60:.1f} min.\n"
    )


def _repeated(target: LlamaForCausalLM, heldout: TokenDocuments) -> float:
    prompts = draw_prompts(heldout, PROMPTS // 4, 128, np.random.default_rng(0))
    return repeated_share(greedy(target, prompts, NEW_TOKENS).ids[:, 128:])


def _shape(model: LlamaForCausalLM) -> str:
    c = model.config
    return (
        f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}M parameters, {c.num_hidden_layers} layers, "
        f"hidden {c.hidden_size}, {c.num_attention_heads} query and {c.num_key_value_heads} key-value heads "
        f"of {c.head_dim}, MLP {c.intermediate_size}, tied embeddings, context {c.max_position_embeddings}"
    )


def model_card(
    folder: Path, heldout: TokenDocuments, split: Split, records: dict[str, dict], note: str
) -> str:
    """The model card's text, every number measured here with the shipped bfloat16 weights in float32."""
    torch.set_num_threads(2)
    target, draft = pair.load_float32(folder / "target"), pair.load_float32(folder / "draft")
    acceptance = measure_acceptance(target, draft, heldout, PROMPTS, NEW_TOKENS)
    return f"""# The bundled pair

A target and a draft small enough to ship inside the package, so that every strategy, speculative
decoding too, can be compared without a download. They write text that looks like Python and are of
no use for anything else.

- Target: Llama, {_shape(target)}.
- Draft: Llama, {_shape(draft)}.
- Both: byte-level BPE of {VOCAB_SIZE} entries, `<|eos|>` (id 0) ends every document; bfloat16 weights.

## Data

Hand-written sources of the standard library of Python {platform.python_version()} (no tests, no generated
tables). A document is one top-level block of a file. {HELDOUT_PERCENT} % of the files, by a hash of their
path, are held out from the tokenizer and from all training; their tokens are `corpus.safetensors`.

| | files | documents | tokens |
|---|---|---|---|
| trained on | {split.train_files} | {split.train_documents} | {split.train_tokens} |
| held out | {split.heldout_files} | {split.heldout_documents} | {split.heldout_tokens} |

## Training

On 2 cores of an AMD EPYC, bfloat16 autocast, Muon and AdamW, seed 0, by

    {COMMAND}

{_training_rows(records)}
Budgets are minutes, so another machine takes another number of steps. {note}

## Held-out loss

Nats per token, over all held-out tokens in windows of the given length.

| window | target | draft |
|---|---|---|
{_loss_rows(target, draft, heldout)}

## Acceptance

Greedy, {PROMPTS} held-out prompts of 64, 128, 192 and 256 tokens in equal parts (each from the start of a
document), {NEW_TOKENS} new tokens each or up to the end token. Rounds as in speculative decoding
(Leviathan et al. 2023, arXiv:2211.17192): the draft proposes k tokens, those before the first that is not
the target's are kept, and the target adds one.
The last column is the share kept at each place among all proposals made at that place. The four lengths
share documents, so the prompts are not independent.

| k | rounds | kept of all drafted | tokens per round | kept at place 1 / 2 / ... (%) |
|---|---|---|---|---|
{_acceptance_rows(acceptance)}

The target repeats itself, which is easy to draft: {100 * _repeated(target, heldout):.0f} % of the runs of
four new tokens stood earlier in the same continuation (128-token prompts). Expect less from a larger
target or from sampling.

## Step time

Median of one decode step after 256 tokens, in ms, transformers in float32, 2 threads, no
compilation; three draft steps after each target step, as in speculative decoding. In TuneBatch's own
engine, where the draft runs in bfloat16, it is a smaller share: `benchmarks/draft_step.py`.

| batch | target | draft | target / draft |
|---|---|---|---|
{_step_rows(target, draft)}
"""
