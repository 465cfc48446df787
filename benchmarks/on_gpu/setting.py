"""What is measured: on a GPU the published shapes, and a dry run that only shows that everything runs."""

from __future__ import annotations

from dataclasses import dataclass

from tunebatch.engine.strategies import STRATEGIES

CHECKED = (*STRATEGIES, "continuous+prefix", "continuous+ngram", "mixed+prefix+ngram")
WORKLOADS = ("chat", "rag", "long-prompt")


@dataclass(frozen=True, slots=True)
class Setting:
    """Sizes of everything.

    Attributes:
        large, small: Named shapes that are timed.
        exact: Whose greedy tokens are compared in float32.
        backend: Of attention, and ``compiler`` of torch.compile; see ``load_executor``.
        compile_s: What compiling the small model and comparing it may take.
        kernel_cases: Random attention steps that are compared with float64.
        kernel_dtypes: In which.
        longest_kernel_context: Of these.
        batches, contexts: Of decode steps.
        prompts: Lengths of prompts that are prefilled.
        at_context: The context at which decode steps are judged, and ``at_prompt`` the prompt.
        num_blocks: KV blocks; None: as many as there is room for.
        requests: Of the offline workload, served so many ``rounds``, and ``offline_lengths`` its lengths.
        checked: Strategies whose tokens are compared.
        workloads: That all strategies serve, with ``strategy_requests`` each at ``strategy_batch``.
    """

    dry: bool
    device: str
    dtype: str
    large: str
    small: str
    exact: str
    backend: str
    compiler: str
    compile_s: float
    kernel_cases: int
    kernel_dtypes: tuple[str, ...]
    longest_kernel_context: int
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    at_context: int
    at_prompt: int
    ceilings_s: float
    max_slots: int
    num_blocks: int | None
    repeats: int
    requests: int
    rounds: int
    offline_lengths: tuple[int, int]
    checked: tuple[str, ...]
    workloads: tuple[str, ...]
    strategy_requests: int
    strategy_batch: int
    host_batches: tuple[int, ...]
    host_tokens: int


ON_GPU = Setting(
    dry=False,
    device="cuda",
    dtype="bfloat16",
    large="llama-3.1-8b",
    small="qwen3-0.6b",
    exact="qwen3-0.6b",
    backend="auto",
    compiler="inductor",
    compile_s=60.0,
    kernel_cases=500,
    kernel_dtypes=("bfloat16", "float32", "float16"),
    longest_kernel_context=4096,
    batches=(1, 2, 4, 8, 16, 32, 64, 128, 256, 512),
    contexts=(2048, 512, 8192, 32768),
    prompts=(8192, 1024, 2048, 4096, 16384, 32768),
    at_context=2048,
    at_prompt=8192,
    ceilings_s=6.0,
    max_slots=512,
    num_blocks=None,
    repeats=20,
    requests=256,
    rounds=3,
    offline_lengths=(100, 1024),
    checked=CHECKED,
    workloads=WORKLOADS,
    strategy_requests=192,
    strategy_batch=64,
    host_batches=(1, 32, 256),
    host_tokens=256,
)

DRY = Setting(
    dry=True,
    device="cpu",
    dtype="float32",
    large="llama-8m:2-layers",
    small="llama-8m:1-layer",
    exact="llama-8m:1-layer",
    backend="reference",
    compiler="eager",
    compile_s=0.0,
    kernel_cases=4,
    kernel_dtypes=("float32", "float16"),
    longest_kernel_context=64,
    batches=(1, 4),
    contexts=(48, 96),
    prompts=(64, 128),
    at_context=48,
    at_prompt=64,
    ceilings_s=1.0,
    max_slots=8,
    num_blocks=40,
    repeats=3,
    requests=6,
    rounds=1,
    offline_lengths=(4, 12),
    checked=CHECKED,
    workloads=WORKLOADS,
    strategy_requests=6,
    strategy_batch=4,
    host_batches=(1, 4),
    host_tokens=8,
)
