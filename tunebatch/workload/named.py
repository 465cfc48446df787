"""Workloads with a name, with lengths from published measurements.

`chat`: LMSYS-Chat-1M cut to 4k tokens, multi-turn: prompt p50 417 and p90 1678, output 139 and 484
tokens (Agrawal et al., "Vidur", MLSys 2024, arXiv:2405.05465, table of workloads). Arrivals are
Poisson: the gaps of the Azure 2023 conversation trace have a coefficient of variation of 1.09.

`code`: the Azure 2023 code completion trace: prompt p50 1469 and p90 5187.6, output 13 and 55 tokens,
longest 7437 and 1899 (repository Azure/AzurePublicDataset; Patel et al., "Splitwise", ISCA 2024,
arXiv:2311.18677). Arrivals are Poisson for want of a simple law: the trace itself goes on and off
(coefficient of variation 13), and is best replayed as a trace.

`summarize`: arXiv-Summarization cut to 4k tokens: prompt p50 2730 and p90 3702, output 167 and 372
tokens (Vidur, as above).

`system-prompt`: a first turn of chat (replies as those of `chat`) behind one of three system prompts of
1,024 tokens, the first of which is the most popular by far.

`rag`: short questions about 32 documents as long as the articles of `summarize`, popular by Zipf's law.

`multi-turn`: conversations of 2 to 6 turns behind one system prompt; the median of the user's text (36
tokens) and the replies (p50 280, p90 683) are those of the first turns in ShareGPT (NanoFlow's copy,
repository efeslab/Nanoflow), the p90 of the text is our own: the published 829 are pasted documents.

`agents`: the descriptions of tools, then 3 to 10 calls with their results, each of which the model waits
half a second for. Most prompts are as long as in Mooncake's tool and agent trace, whose median is 6.3k
tokens (Qin et al., FAST 2025, as analysed by others), and most calls as short as there (30 tokens).

`long-prompt`: `chat`, but every 20th prompt has 12k to 16k tokens.

Shared beginnings, turns and pauses without a source are our own choice. Think times are short, so that a
run sees whole conversations.

`offline`: everything at once, uniform lengths with the long-to-short spread that padding and waiting
suffer from. Our own choice, as is `quickstart`: 71 requests, the fewest that can give a p90, short
enough for seconds on a CPU.

The rates are only where a search begins. Laws are fitted to the two percentiles and bounded by the
longest request of the data.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tunebatch.workload.clip import room
from tunebatch.workload.lengths import Fixed, Interleaved, Lengths, LogNormal, Uniform
from tunebatch.workload.spec import WorkloadSpec

NAMED: dict[str, WorkloadSpec] = {
    "chat": WorkloadSpec(
        name="chat",
        rate_per_s=4.0,
        prompt_lengths=LogNormal.fit(417, 1678, high=4096),
        output_lengths=LogNormal.fit(139, 484, high=4096),
        num_requests=1000,
    ),
    "code": WorkloadSpec(
        name="code",
        rate_per_s=4.0,
        prompt_lengths=LogNormal.fit(1469, 5187.6, high=7437),
        output_lengths=LogNormal.fit(13, 55, high=1899),
        num_requests=1000,
    ),
    "summarize": WorkloadSpec(
        name="summarize",
        rate_per_s=2.0,
        prompt_lengths=LogNormal.fit(2730, 3702, high=4054),
        output_lengths=LogNormal.fit(167, 372, high=4056),
        num_requests=1000,
    ),
    "offline": WorkloadSpec(
        name="offline",
        arrivals="burst",
        prompt_lengths=Uniform(64, 1024),
        output_lengths=Uniform(16, 512),
        num_requests=1000,
    ),
    "quickstart": WorkloadSpec(
        name="quickstart",
        rate_per_s=8.0,
        prompt_lengths=LogNormal.fit(90, 160, low=16, high=256),
        output_lengths=Uniform(8, 96),
        num_requests=71,
    ),
    "system-prompt": WorkloadSpec(
        name="system-prompt",
        rate_per_s=4.0,
        prefix_lengths=Fixed(1024),
        num_prefixes=3,
        prefix_skew=1.5,
        prompt_lengths=LogNormal.fit(36, 250, high=1024),
        output_lengths=LogNormal.fit(139, 484, high=4096),
        num_requests=1000,
    ),
    "rag": WorkloadSpec(
        name="rag",
        rate_per_s=4.0,
        prefix_lengths=LogNormal.fit(2730, 3702, high=4054),
        num_prefixes=32,
        prefix_skew=1.0,
        prompt_lengths=LogNormal.fit(30, 80, high=256),
        output_lengths=LogNormal.fit(100, 250, high=1024),
        num_requests=1000,
    ),
    "agents": WorkloadSpec(
        name="agents",
        rate_per_s=4.0,
        prefix_lengths=Fixed(4096),
        prompt_lengths=LogNormal.fit(200, 800, high=4096),
        output_lengths=LogNormal.fit(30, 150, high=1024),
        turns=Uniform(4, 11),
        think_time_s=0.5,
        num_requests=1000,
    ),
    "multi-turn": WorkloadSpec(
        name="multi-turn",
        rate_per_s=4.0,
        prefix_lengths=Fixed(512),
        prompt_lengths=LogNormal.fit(36, 250, high=1024),
        output_lengths=LogNormal.fit(280, 683, high=2048),
        turns=Uniform(2, 6),
        think_time_s=2.0,
        num_requests=1000,
    ),
    "long-prompt": WorkloadSpec(
        name="long-prompt",
        rate_per_s=4.0,
        prompt_lengths=Interleaved(LogNormal.fit(417, 1678, high=4096), Uniform(12_288, 16_384), 20),
        output_lengths=LogNormal.fit(139, 484, high=4096),
        num_requests=1000,
        notes=("one of 20 prompts is a very long one",),
    ),
}

# Requests that the 99th percentile of the total length is taken from.
_SAMPLES, _CONVERSATIONS = 20_000, 4_000


def scaled_to(spec: WorkloadSpec, max_context: int, kv_tokens: int | None = None) -> WorkloadSpec:
    """The description with all lengths shrunk alike until their total fits a context.

    It fits a KV cache as well, if that is smaller. Of a conversation the last turn is the one to fit.

    The p99 of the total is made to fit; the few requests beyond it are for `build` to clip. The factor
    has two significant digits, so that the note that it leaves says it exactly. A description that
    fits, or that takes its lengths from a trace, comes back as it is.

    Raises:
        ValueError: The context is below 2 tokens.
    """
    if max_context < 2:
        raise ValueError(f"a context of {max_context} tokens holds no request; must be at least 2")
    if spec.prompt_lengths is None or spec.output_lengths is None:
        return spec
    limit = room(max_context, kv_tokens)
    fit = limit.tokens / float(np.percentile(_totals(spec), 99))
    if fit >= 1:
        return spec
    step = 10.0 ** (math.floor(math.log10(fit)) - 1)
    factor = float(f"{math.floor(fit / step) * step:.2g}")
    return replace(
        spec,
        prompt_lengths=spec.prompt_lengths.scaled(factor),
        output_lengths=spec.output_lengths.scaled(factor),
        prefix_lengths=spec.prefix_lengths and spec.prefix_lengths.scaled(factor),
        notes=(*spec.notes, f"lengths scaled by {factor:g} to fit a {limit}"),
    )


def _totals(spec: WorkloadSpec) -> Lengths:
    """Prompt and output tokens of requests, or of the last turns of conversations."""
    assert spec.prompt_lengths and spec.output_lengths
    rng = np.random.default_rng(0)
    turns = np.ones(_SAMPLES, np.int64) if spec.turns is None else spec.turns.sample(_CONVERSATIONS, rng)
    said = spec.prompt_lengths.sample(turns.sum(), rng) + spec.output_lengths.sample(turns.sum(), rng)
    totals = np.add.reduceat(said, np.cumsum(turns) - turns)
    return totals if spec.prefix_lengths is None else totals + spec.prefix_lengths.sample(len(turns), rng)
