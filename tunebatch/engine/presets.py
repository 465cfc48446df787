"""Schedulers of well-known engines, in this engine's strategies and knobs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Preset:
    """A name for a strategy with certain knobs.

    Attributes:
        strategy: A row of the table of strategies.
        knobs: Values that the source has; the others have their defaults.
        source: Paper or project, and version.
        differs: What the source does that the strategy does not, one line.
    """

    strategy: str
    knobs: dict[str, float | int]
    source: str
    differs: str


# More tokens than any step has: prompts are computed whole.
_WHOLE_PROMPTS = 65536

PRESETS: dict[str, Preset] = {
    "orca": Preset(
        "mixed",
        {"max_batch_size": 128, "chunk_size": _WHOLE_PROMPTS, "max_partial_prefills": 1},
        "Orca (OSDI 2022), as the orca scheduler of sarathi-serve (OSDI 2024) has it",
        "Orca reserves the KV cache of the whole answer on admission; here blocks are taken as needed, and "
        "the newest sequence may be preempted",
    ),
    "vllm-v0": Preset(
        "continuous",
        {"max_batch_size": 256, "max_batched_tokens": 2048},
        "vLLM's first engine (SOSP 2023; V0, without chunked prefill)",
        "V0 lets max_num_batched_tokens grow to the model's context; here a longer prompt goes alone",
    ),
    "sarathi": Preset(
        "mixed",
        {"max_batch_size": 128, "chunk_size": 512, "max_partial_prefills": 1},
        "Sarathi-Serve (OSDI 2024), defaults of sarathi-serve",
        "none in the order of work; its dynamic chunk schedule, off by default, is not here",
    ),
    "vllm-v1": Preset(
        "mixed",
        {"max_batch_size": 256, "chunk_size": 2048, "max_partial_prefills": 1},
        "vLLM 0.33, the V1 scheduler; defaults of its server on GPUs under 70 GiB",
        "V1 computes running requests in order of admission, here decodes go before prompts that have begun; "
        "it plans the next step while one runs",
    ),
    "splitfuse": Preset(
        "mixed",
        {"max_batch_size": 512, "chunk_size": 768, "max_partial_prefills": 1},
        "DeepSpeed-FastGen (2024), defaults of DeepSpeed's inference engine v2",
        "FastGen may cut several prompts in a step, here one; a budget that follows the measured steps is "
        "chunk_size auto",
    ),
    "lightllm": Preset(
        "chunked",
        {"max_batch_size": 1000, "chunk_size": 4096, "max_batched_tokens": 8448, "forecast_kv": 1},
        "LightLLM 1.0 (2025), defaults of its server",
        "LightLLM expects answers of the mean length of the last ones, here of those that were longer; where "
        "the KV cache is full it pauses sequences, here they are computed again",
    ),
}
