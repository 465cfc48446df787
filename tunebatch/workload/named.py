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

`offline`: everything at once, uniform lengths with the long-to-short spread that padding and waiting
suffer from. Our own choice, as is `quickstart`: 64 requests, the fewest that can give a p90, short
enough for seconds on a CPU.

The rates are only where a search begins. Laws are fitted to the two percentiles and bounded by the
longest request of the data.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from tunebatch.workload.clip import room
from tunebatch.workload.lengths import LogNormal, Uniform
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
        num_requests=64,
    ),
}

# Requests that the 99th percentile of the total length is taken from.
_SAMPLES = 20_000


def scaled_to(spec: WorkloadSpec, max_context: int, kv_tokens: int | None = None) -> WorkloadSpec:
    """The description with prompt and output lengths shrunk alike until their total fits a context.

    It fits a KV cache as well, if that is smaller.

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
    rng = np.random.default_rng(0)
    total = spec.prompt_lengths.sample(_SAMPLES, rng) + spec.output_lengths.sample(_SAMPLES, rng)
    limit = room(max_context, kv_tokens)
    fit = limit.tokens / float(np.percentile(total, 99))
    if fit >= 1:
        return spec
    step = 10.0 ** (math.floor(math.log10(fit)) - 1)
    factor = float(f"{math.floor(fit / step) * step:.2g}")
    return replace(
        spec,
        prompt_lengths=spec.prompt_lengths.scaled(factor),
        output_lengths=spec.output_lengths.scaled(factor),
        notes=(*spec.notes, f"lengths scaled by {factor:g} to fit a {limit}"),
    )
