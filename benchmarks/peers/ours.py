"""TuneBatch's engine with continuous batching."""

from __future__ import annotations

from tunebatch.engine.clock import ReplayClock
from tunebatch.engine.engine import Engine
from tunebatch.engine.request import Request
from tunebatch.engine.strategies import strategy
from tunebatch.execute.torch.load import load_executor
from tunebatch.execute.torch.same_tokens import AllAtOnce

from .work import Case, Side, Turn, timed

BLOCK_SIZE = 16


def ours(case: Case) -> Side:
    """Every running sequence finds room in the KV cache at its full length, as on the other sides."""
    lengths = sorted((len(request.prompt) + request.max_tokens for request in case.requests), reverse=True)
    executor = load_executor(
        str(case.folder),
        device=case.device,
        dtype=case.dtype,
        backend=case.backend,
        block_size=BLOCK_SIZE,
        num_blocks=sum(-(-length // BLOCK_SIZE) for length in lengths[: case.batch]),
        max_slots=case.batch,
    )

    def turn(requests: list[Request]) -> Turn:
        executor.reset()
        policy = strategy("continuous", {"max_batch_size": case.batch}).make_policy()
        engine = Engine(executor, policy, AllAtOnce(requests), ReplayClock())
        with timed() as span:
            record = engine.run()
        outputs = {served.id: served.output for served in record.requests}
        return Turn(span.seconds, [outputs[request.id] for request in requests], span.foreign_cores)

    return turn
