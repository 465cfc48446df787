"""What a client asks for: one request, as it arrives."""

from __future__ import annotations

import struct
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is chosen. The default is greedy.

    Noise depends only on ``seed`` and the token's position, never on the batch, so a request
    gets the same tokens under every strategy.

    Attributes:
        temperature: 0 means greedy.
        top_p: Keep the smallest set of tokens whose probability reaches this; 1 keeps all.
        top_k: Keep the k most probable tokens; 0 keeps all.
        seed: Seed of this request's noise.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0

    @property
    def greedy(self) -> bool:
        return self.temperature == 0.0


GREEDY = Sampling()


@dataclass(frozen=True, slots=True)
class Request:
    """One prompt to be answered.

    Attributes:
        id: Unique within a run; also the order of equal arrivals.
        prompt: Token ids, at least one.
        max_tokens: Output tokens after which the request ends, at least 1.
        arrival_s: Scheduled arrival, in seconds from the start of the run.
        cancel_at_s: When the client hangs up, or None.
        ignore_eos: Keep generating after the end-of-sequence token (benchmarks with given lengths).
        packed: The prompt, four bytes a token, the lowest first: made with the request, so that no step that
            looks for shared prefixes or repeated n-grams pays for it.
    """

    id: int
    prompt: tuple[int, ...]
    max_tokens: int
    arrival_s: float = 0.0
    cancel_at_s: float | None = None
    sampling: Sampling = GREEDY
    ignore_eos: bool = False
    packed: bytes = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.prompt:
            raise ValueError(f"request {self.id}: the prompt is empty")
        if self.max_tokens < 1:
            raise ValueError(f"request {self.id}: max_tokens is {self.max_tokens}, must be at least 1")
        object.__setattr__(self, "packed", struct.pack(f"<{len(self.prompt)}I", *self.prompt))


def why_never_fits(request: Request, num_blocks: int, block_size: int, max_context: int) -> str | None:
    """Say why a request could not be served even alone, or None if it can."""
    total = len(request.prompt) + request.max_tokens
    if total > max_context:
        return (
            f"request {request.id}: {len(request.prompt)} prompt + {request.max_tokens} output tokens "
            f"exceed the context of {max_context}"
        )
    # The last token is only returned, so its keys and values are never stored.
    if -(-(total - 1) // block_size) > num_blocks:
        return (
            f"request {request.id}: {total} tokens do not fit into a KV cache of "
            f"{num_blocks} blocks of {block_size}"
        )
    return None
