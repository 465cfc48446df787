"""The arithmetic and the memory traffic that a run's steps had to do, counted from its records.

Two operations for each weight that a token goes through, and four for each number of a key that it sees (the
count of Chowdhery et al., "PaLM", 2022, arXiv:2204.02311, appendix B, forward pass only). Of the memory: each
step reads the weights once, and the keys and values that its tokens see once for each sequence, and writes
those of its own tokens. Nothing else is counted: no activations, no padding, and nothing of a draft model.
"""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from tunebatch.engine.records import RequestRecord, RunRecord
from tunebatch.measure.kv_memory import KvLayout
from tunebatch.models.architecture import Architecture
from tunebatch.models.parameters import count_parameters

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class ModelWork:
    """What a model costs.

    Attributes:
        body_weights: That a token goes through below the head.
        head_weights: That a row of logits goes through.
        expert_weights: Of one expert in all layers; 0 without experts.
        weight_bytes: Of one weight.
        heads: Query heads of a layer.
        layout: Of keys and values.
    """

    body_weights: int
    head_weights: int
    weight_bytes: int
    heads: int
    layout: KvLayout
    expert_weights: int = 0
    num_experts: int = 0
    experts_per_token: int = 0

    def weights_read(self, tokens: Floats, rows: Floats) -> Floats:
        """By steps of so many tokens that sample so many rows of logits.

        Which experts tokens go to is not known: counted are as many as they meet when each choice is equally
        likely, the most that can be expected.
        """
        head = np.where(rows > 0, self.head_weights, 0)
        if not self.num_experts:
            return np.where(tokens > 0, self.body_weights, 0) + head
        missed = (1.0 - self.experts_per_token / self.num_experts) ** tokens
        met = self.num_experts * (1.0 - missed)
        dense = self.body_weights - self.experts_per_token * self.expert_weights
        return np.where(tokens > 0, dense, 0) + self.expert_weights * met + head


@dataclass(frozen=True, slots=True)
class StepWork:
    """One entry for each step of a run.

    Attributes:
        tokens: That were computed, rejected drafts and recomputed ones included.
        rows: Of logits.
    """

    duration_s: Floats
    tokens: Floats
    rows: Floats
    flops: Floats
    bytes: Floats


def model_work(model: Architecture, element_bytes: int) -> ModelWork:
    """What a model of these sizes costs, with weights, keys and values of one size."""
    parameters = count_parameters(model)
    head = parameters.head + parameters.tied_head
    idle = model.num_experts - model.experts_per_token
    return ModelWork(
        body_weights=parameters.active - head,
        head_weights=head,
        weight_bytes=element_bytes,
        heads=model.heads,
        layout=KvLayout(model.kv_heads, model.head_dim, model.windows, element_bytes),
        expert_weights=parameters.idle_experts // idle if idle else 0,
        num_experts=model.num_experts if idle else 0,
        experts_per_token=model.experts_per_token if idle else 0,
    )


def step_work(record: RunRecord, work: ModelWork) -> StepWork:
    """What each step of the run had to do.

    Where layers see a window, the decodes of a step count as if their contexts were alike, which is a little
    too much in steps in which some fill the window and others do not.
    """
    steps, layout = record.steps, work.layout
    count = len(steps)
    decodes = np.array(steps.num_decodes, np.float64)
    of_step, start, num, rows_of_slices = _slices(record)
    mean_context = np.array(steps.context_sum, np.float64) / np.maximum(decodes, 1.0)
    before, one = np.maximum(mean_context - 1.0, 0.0), np.minimum(decodes, 1.0)

    def per_step(values: Floats) -> Floats:
        return np.zeros(count) + np.bincount(of_step, values, count)

    tokens = decodes + per_step(num)
    rows = decodes + per_step(rows_of_slices)
    attended = decodes * layout.attended(before, one) + per_step(layout.attended(start, num))
    seen_bytes = decodes * layout.bytes_of_seen(before, one) + per_step(layout.bytes_of_seen(start, num))
    flops = 2.0 * (work.body_weights * tokens + work.head_weights * rows)
    return StepWork(
        duration_s=np.array(steps.duration_s, np.float64),
        tokens=tokens,
        rows=rows,
        flops=flops + 4.0 * work.heads * layout.head_dim * attended,
        bytes=work.weight_bytes * work.weights_read(tokens, rows)
        + seen_bytes
        + layout.bytes_per_token * tokens,
    )


def _slices(record: RunRecord) -> tuple[NDArray[np.int64], Floats, Floats, Floats]:
    """Of every prefill, chunk and verification: its step, first token, tokens, and rows of logits."""
    requests = {request.id: request for request in record.requests}
    steps = record.steps
    found: list[tuple[int, int, int, int]] = []
    for step, start_s in enumerate(steps.start_s):
        for request_id, _, start, num in steps.slices[step]:
            ends = start + num == _num_tokens(requests[request_id], start_s)
            found.append((step, start, num, int(ends)))
        for request_id, _, num_drafts, _ in steps.verifications[step]:
            computed = _num_tokens(requests[request_id], start_s) - 1
            found.append((step, computed, num_drafts + 1, num_drafts + 1))
    table = np.array(found, np.int64).reshape(-1, 4)
    start, num, rows = table[:, 1:].T.astype(np.float64)
    return table[:, 0], start, num, rows


def _num_tokens(request: RequestRecord, at_s: float) -> int:
    """Of the prompt, and the output by then."""
    return request.num_prompt_tokens + bisect_right(request.token_times_s, at_s)
