"""The work that every side serves, and what a side answers when it is its turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import transformers

from tunebatch.engine.request import Request
from tunebatch.execute.torch.load import DTYPES
from tunebatch.execute.torch.random_weights import random_network
from tunebatch.measure.telemetry.cpu import CpuTelemetry
from tunebatch.models import bundled_target
from tunebatch.models.named_shape import named_shape

PROMPT_TOKENS, OUTPUT_TOKENS = 128, (16, 256)
CONTEXT = PROMPT_TOKENS + OUTPUT_TOKENS[1]
WARM_UP_TOKENS = 32
SHAPES = {"tiny": "llama-8m", "small": "llama-32m", "135m": "smollm2-135m"}
MODELS = ("bundled", *SHAPES)


@dataclass(frozen=True, slots=True)
class Case:
    """One row of the comparison: a model's folder, a number type, a limit of running sequences, requests.

    Attributes:
        backend: Of our attention.
    """

    folder: Path
    dtype: str
    batch: int
    requests: list[Request]
    device: str = "cpu"
    backend: str = "auto"


@dataclass(frozen=True, slots=True)
class Turn:
    """What a side did in its turn.

    Attributes:
        seconds: From handing over all requests until the last output token; loading is not in it.
        outputs: Output tokens of each request, in the order of the requests.
        foreign_cores: Cores' worth of work that anybody but this side did meanwhile, the waiting
            sides included; None where the system does not tell.
    """

    seconds: float
    outputs: list[list[int]]
    foreign_cores: float | None


# Serves the requests given and says how long it took.
Side = Callable[[list[Request]], Turn]


@dataclass(slots=True)
class Span:
    """Seconds of a timed block, and the cores' worth of work that other processes did meanwhile."""

    seconds: float = 0.0
    foreign_cores: float | None = None


@contextmanager
def timed() -> Iterator[Span]:
    """Times a block in this process."""
    span = Span()
    telemetry = CpuTelemetry()
    with telemetry:
        start = time.perf_counter()
        yield span
        span.seconds = time.perf_counter() - start
    if telemetry.use is not None:
        span.foreign_cores = telemetry.use.other_cpu_percent / 100


def save(model: str, dtype: str, folder: Path, device: str = "cpu") -> tuple[int, int]:
    """Writes the model's weights in Hugging Face format; returns its parameters and its vocabulary's size.

    A model is ``bundled``, or random weights of a named shape. No EOS token is left in its configuration:
    every side generates exactly the lengths asked for.
    """
    if model == "bundled":
        network = transformers.AutoModelForCausalLM.from_pretrained(bundled_target(), dtype=DTYPES[dtype])
    else:
        shape = named_shape(SHAPES.get(model, model))
        assert shape is not None, model
        network = random_network(shape.config, DTYPES[dtype], device)
    network.config.eos_token_id = network.generation_config.eos_token_id = None
    network.save_pretrained(folder)
    return sum(parameter.numel() for parameter in network.parameters()), network.config.vocab_size


def load(case: Case) -> Any:
    """A copy of the model of a side's own, with transformers' SDPA attention."""
    network = transformers.AutoModelForCausalLM.from_pretrained(
        case.folder, dtype=DTYPES[case.dtype], attn_implementation="sdpa"
    )
    return network.to(case.device).eval()


def traffic(vocabulary: int, num_requests: int) -> list[Request]:
    """Requests that are all there at once: random prompts, seeded uniform output lengths."""
    rng = np.random.default_rng(1)
    lengths = rng.integers(OUTPUT_TOKENS[0], OUTPUT_TOKENS[1] + 1, num_requests)
    return [
        Request(i, tuple(rng.integers(4, vocabulary, PROMPT_TOKENS).tolist()), int(n), ignore_eos=True)
        for i, n in enumerate(lengths)
    ]


def warm_up_requests(case: Case) -> list[Request]:
    """A full batch of the case's own prompts with short outputs."""
    return [
        replace(request, max_tokens=min(request.max_tokens, WARM_UP_TOKENS))
        for request in case.requests[: case.batch]
    ]
