"""The model's own code through torch.compile, for whoever asks for it.

Attention is one operator that the compiler does not look into, as in vLLM: it finds the step and the backend
where the forward has put them, so that no object with block tables is traced, and the graph is never broken.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tunebatch.execute.torch.attention.base import AttentionBackend, StepContext, Variant
from tunebatch.execute.torch.model_error import ModelError

# Of the forward that is running; steps run one after the other.
_running: list[tuple[AttentionBackend, StepContext]] = []
_LEAST_ROWS = 2


# What it writes, the KV pools, is no argument and is read by itself alone; calls differ by their layer, so
# that none is taken for another's repetition, and their outputs keep them in order.
@torch.library.custom_op("tunebatch::attend", mutates_args=())
def _attend(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    sinks: Tensor | None,
    layer: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    backend, step = _running[-1]
    return backend.attend(query, key, value, layer, Variant(scale, window, softcap, sinks), step)


@_attend.register_fake
def _shape(query: Tensor, key: Tensor, value: Tensor, *_: object) -> Tensor:
    return query.new_empty(query.shape[0], query.shape[1], value.shape[2])


class Operator:
    """The backend that compiled code sees, and the step, of which it must not see anything."""

    def attend(
        self, query: Tensor, key: Tensor, value: Tensor, layer: int, variant: Variant, step: object
    ) -> Tensor:
        """See `AttentionBackend`."""
        asked = variant.sinks, layer, variant.scale, variant.window, variant.softcap
        return _attend(query, key, value, *asked)


def compiled_forward(
    model: Any, backend: AttentionBackend, compiler: str = "inductor"
) -> Callable[[Tensor, Tensor, StepContext], Tensor]:
    """The model's forward as `forward.transformers_forward`, compiled when it is first called: once for steps
    of one token, and once for all larger ones.

    Args:
        compiler: Of torch.compile's backends.

    Raises:
        ModelError: By the forward, when it cannot be compiled.
    """
    compiled = torch.compile(model, dynamic=True, backend=compiler)
    operator = Operator()

    def forward(input_ids: Tensor, sampled_at: Tensor, step: StepContext) -> Tensor:
        # What a compiler takes for constants are sizes of 0 and 1: there are no such numbers of rows.
        rows = sampled_at if len(sampled_at) > 1 else F.pad(sampled_at, (0, _LEAST_ROWS - len(sampled_at)))
        _running.append((backend, step))
        try:
            out = compiled(
                input_ids=_of_inference(input_ids)[None],
                position_ids=_of_inference(step.positions)[None],
                use_cache=False,
                logits_to_keep=_of_inference(rows),
                step_context=operator,
                backend=operator,
            )
        except Exception as error:
            if not _of_compiler(error):
                raise
            why = getattr(error, "inner_exception", error)  # of the compiler's backend
            first = (str(why).strip() or type(why).__name__).splitlines()[0]
            raise ModelError(f"{model.config.model_type} cannot be compiled: {first}") from error
        finally:
            _running.pop()
        logits: Tensor = out.logits[0][: len(sampled_at)]
        return logits

    return forward


def _of_inference(numbers: Tensor) -> Tensor:
    """The same, alike for a compiler wherever they come from: tensors that were made outside of inference
    mode, such as those that graphs read, are of another kind, for which all is compiled once more."""
    return numbers if numbers.is_inference() else numbers.clone()


def _of_compiler(error: BaseException) -> bool:
    return type(error).__module__.startswith(("torch._dynamo", "torch._inductor"))
