"""transformers' continuous batching, paged SDPA.

``generate_batch`` takes one output length for all requests, so the requests go to the manager that it
wraps, which takes each with its own.
"""

from __future__ import annotations

import transformers
from transformers import GenerationConfig

from tunebatch.engine.request import Request

from .work import Case, Side, Turn, load, timed

MAX_BATCH_TOKENS = 2048
# Two of its pages of 256 tokens hold a request; the rest keeps its safety margin from holding requests back.
BLOCKS_PER_REQUEST = 4


class NoContinuousBatchingError(RuntimeError):
    """The installed transformers has not got the interface that is measured; one line."""


def generate_batch(case: Case) -> Side:
    """The manager and its cache are made anew for each turn, outside of the timed part.

    Raises:
        NoContinuousBatchingError: This release of transformers does it in another way.
    """
    model = load(case)
    if not hasattr(model, "continuous_batching_context_manager") or not hasattr(
        transformers, "ContinuousBatchingConfig"
    ):
        raise NoContinuousBatchingError(
            f"transformers {transformers.__version__} has no continuous batching with a configuration "
            "of its own, as 5.17 and 5.23 have; leave generate_batch out of --peer"
        )
    generation = GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)

    def turn(requests: list[Request]) -> Turn:
        settings = transformers.ContinuousBatchingConfig(
            max_requests_per_batch=case.batch,
            **_sizes(case),
            # The same prompts come in every round: no engine may remember them.
            allow_block_sharing=False,
        )
        outputs: dict[str, list[int]] = {}
        with model.continuous_batching_context_manager(
            generation_config=generation, continuous_batching_config=settings
        ) as manager:
            if case.device == "cpu" and not model.config._attn_implementation.endswith("sdpa"):
                raise NoContinuousBatchingError(
                    f"transformers switched to {model.config._attn_implementation}; paged SDPA is measured"
                )
            with timed() as span:
                for request in requests:
                    manager.add_request(
                        list(request.prompt), request_id=str(request.id), max_new_tokens=request.max_tokens
                    )
                while len(outputs) < len(requests):
                    result = manager.get_result(timeout=1)
                    if result is not None and result.error is not None:
                        raise RuntimeError(f"continuous batching failed a request: {result.error}")
                    if result is not None and result.is_finished():
                        outputs[result.request_id] = list(result.generated_tokens)
                    elif not manager.is_running():
                        raise RuntimeError("continuous batching stopped before all requests were served")
        return Turn(span.seconds, [outputs[str(request.id)] for request in requests], span.foreign_cores)

    return turn


def _sizes(case: Case) -> dict[str, int]:
    """On a GPU it finds what fits by itself."""
    if case.device != "cpu":
        return {}
    return {"max_batch_tokens": MAX_BATCH_TOKENS, "num_blocks": BLOCKS_PER_REQUEST * case.batch}
