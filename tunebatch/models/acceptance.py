"""How often the target keeps what the draft proposes, measured on greedy decoding.

Speculative decoding (Leviathan et al. 2023, "Fast Inference from Transformers via Speculative
Decoding") keeps a draft's proposals up to the first one the target would not have chosen. Under
greedy decoding a proposal is reached only if all before it matched the target's own continuation,
so the draft has then seen that very continuation: one pass of the draft over it tells every
proposal's fate, and rounds are walked exactly as an engine would walk them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import LlamaForCausalLM

from tunebatch.models.corpus import EOS_ID, TokenDocuments


@dataclass(frozen=True)
class Continuations:
    """Equal-length prompts with the target's greedy tokens after them.

    ``ids`` is (rows, prompt + new) int64; ``top_ids`` and ``top_logprobs`` are the target's most
    likely tokens at each new position, (rows, new, top).
    """

    ids: torch.Tensor
    prompt_length: int
    top_ids: torch.Tensor
    top_logprobs: torch.Tensor


@dataclass(frozen=True)
class Acceptance:
    """Rounds of speculative decoding at one proposal length ``k``, counted.

    ``accepted_at[j]`` and ``drafted_at[j]`` count the rounds whose proposal j was kept and was made.
    """

    k: int
    rounds: int
    drafted_at: list[int]
    accepted_at: list[int]

    @property
    def per_position(self) -> list[float]:
        """Share of the proposals at each place of a round that were kept."""
        return [a / max(d, 1) for a, d in zip(self.accepted_at, self.drafted_at, strict=True)]

    @property
    def share(self) -> float:
        """Share of all proposals that were kept."""
        return sum(self.accepted_at) / max(sum(self.drafted_at), 1)

    @property
    def tokens_per_round(self) -> float:
        """Tokens won per target step: those kept and the target's own."""
        return 1.0 + sum(self.accepted_at) / max(self.rounds, 1)


@torch.no_grad()
def greedy(model: LlamaForCausalLM, prompts: torch.Tensor, new: int, top: int = 1) -> Continuations:
    """Greedy continuation of (rows, length) prompts by ``new`` tokens, end tokens not obeyed."""
    output = model(prompts, use_cache=True, logits_to_keep=1)
    ids, top_ids, top_logprobs = [prompts], [], []
    for i in range(new):
        best = output.logits[:, -1].float().log_softmax(-1).topk(top, dim=-1)
        top_ids.append(best.indices)
        top_logprobs.append(best.values)
        ids.append(best.indices[:, :1])
        if i + 1 < new:
            output = model(ids[-1], past_key_values=output.past_key_values, use_cache=True)
    stacked = torch.stack(top_ids, 1), torch.stack(top_logprobs, 1)
    return Continuations(torch.cat(ids, 1), prompts.shape[1], *stacked)


def draw_prompts(documents: TokenDocuments, rows: int, length: int, rng: np.random.Generator) -> torch.Tensor:
    """``rows`` prompts of ``length`` tokens, each beginning where a document begins."""
    fitting = documents.starts[documents.starts + length <= len(documents.tokens)]
    starts = rng.choice(fitting, rows, replace=rows > len(fitting))
    return torch.from_numpy(np.stack([documents.tokens[s : s + length] for s in starts]).astype(np.int64))


@torch.inference_mode()
def matches(draft: LlamaForCausalLM, continuations: Continuations) -> list[np.ndarray]:
    """Per row, whether the draft's choice equals each new token up to the end token.

    The first new token is left out: an engine has it from the prefill, before any proposal.
    """
    new = continuations.ids.shape[1] - continuations.prompt_length
    logits = draft(continuations.ids[:, :-1], use_cache=False, logits_to_keep=new).logits
    tail = continuations.ids[:, -new:]
    equal = (logits.argmax(-1) == tail).numpy()
    rows = []
    for row, tokens in zip(equal, tail.numpy(), strict=True):
        ends = np.flatnonzero(tokens == EOS_ID)
        rows.append(row[1 : ends[0] + 1] if len(ends) else row[1:])
    return rows


def walk_rounds(rows: list[np.ndarray], k: int) -> Acceptance:
    """Count the rounds an engine proposing ``k`` tokens makes over the rows of `matches`."""
    drafted, accepted, rounds = [0] * k, [0] * k, 0
    for row in rows:
        position = 0
        while position < len(row):
            window = row[position : position + k]
            kept = len(window) if window.all() else int(window.argmin())
            for j in range(len(window)):
                drafted[j] += 1
                accepted[j] += j < kept
            position += kept + 1
            rounds += 1
    return Acceptance(k, rounds, drafted, accepted)


def measure_acceptance(
    target: LlamaForCausalLM,
    draft: LlamaForCausalLM,
    documents: TokenDocuments,
    prompts: int = 256,
    new: int = 64,
    ks: tuple[int, ...] = (1, 2, 3, 4, 5),
    seed: int = 0,
) -> list[Acceptance]:
    """Acceptance of the draft after prompts of 64, 128, 192 and 256 tokens, for each ``k``."""
    rng = np.random.default_rng(seed)
    rows: list[np.ndarray] = []
    for length in (64, 128, 192, 256):
        drawn = draw_prompts(documents, max(prompts // 4, 1), length, rng)
        rows += matches(draft, greedy(target, drawn, new))
    return [walk_rounds(rows, k) for k in ks]


def repeated_share(rows: torch.Tensor, length: int = 4) -> float:
    """Share of the runs of ``length`` tokens that stood earlier in the same row of new tokens.

    A small model decoding greedily often repeats itself, and what repeats is easy to draft.
    """
    repeated = total = 0
    for row in rows.tolist():
        runs = [tuple(row[i : i + length]) for i in range(len(row) - length + 1)]
        repeated += len(runs) - len(set(runs))
        total += len(runs)
    return repeated / max(total, 1)


@torch.inference_mode()
def heldout_loss(model: LlamaForCausalLM, documents: TokenDocuments, length: int, tokens: int) -> float:
    """Mean cross-entropy, in nats per token, over the first ``tokens`` tokens in windows of ``length``."""
    count = min(tokens, len(documents.tokens)) // length
    windows = torch.from_numpy(documents.tokens[: count * length].astype(np.int64)).view(count, length)
    total = 0.0
    for rows in windows.split(max(4096 // length, 1)):
        logits = model(rows, use_cache=False).logits[:, :-1]
        total += cross_entropy(logits.flatten(0, 1).float(), rows[:, 1:].flatten(), reduction="sum").item()
    return total / (count * (length - 1))
