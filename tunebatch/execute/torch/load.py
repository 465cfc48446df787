"""Load a model, switch its attention to the paged one, check it, and size the KV cache."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

import torch

from tunebatch.engine.plan import OutOfDeviceMemoryError
from tunebatch.execute.torch import bounds, fused, selfcheck
from tunebatch.execute.torch.attention import choose_backend, choose_for_gpu
from tunebatch.execute.torch.attention.asked import asked_by
from tunebatch.execute.torch.attention.base import AttentionBackend, attention_forward
from tunebatch.execute.torch.attention.choice import OPTIONAL
from tunebatch.execute.torch.checkpoint import locate, read_config, read_network
from tunebatch.execute.torch.compile_choice import PREFILL_TOKENS, compile_if_faster
from tunebatch.execute.torch.draft_room import DRAFT_DTYPE, draft_need
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.forward import Forward, choose_forward
from tunebatch.execute.torch.graphs.capture import Capture, CudaCapture
from tunebatch.execute.torch.graphs.captured import CAPTURABLE, Told, bytes_of_graphs, capture_graphs
from tunebatch.execute.torch.merged import take_apart, watched
from tunebatch.execute.torch.model_error import ModelError
from tunebatch.execute.torch.out_of_memory import out_of_memory, ran_out
from tunebatch.execute.torch.peak_step import CudaMemory, DeviceMemory
from tunebatch.execute.torch.random_weights import random_network
from tunebatch.execute.torch.room import blocks_that_fit, room_bytes
from tunebatch.execute.torch.torch_compile import compiled_forward
from tunebatch.measure.shape_room import Need, dtype_of, why_too_large
from tunebatch.models.hub import hub_answers
from tunebatch.models.named_shape import named_shape
from tunebatch.models.unservable import why_unservable

ATTENTION_NAME = "tunebatch"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def load_executor(
    model: str = "bundled",
    *,
    device: str = "auto",
    dtype: str = "auto",
    backend: str = "auto",
    block_size: int = 16,
    num_blocks: int | None = None,
    max_slots: int = 64,
    utilization: float = 0.9,
    draft: str | None = None,
    compiler: str | None = None,
    graphs: bool = True,
    told: Told | None = None,
) -> TorchExecutor:
    """Load a model and make it ready to serve.

    Args:
        model: ``bundled``, a local folder in Hugging Face format, a hub id, or a named shape, which gets
            random weights.
        device: ``auto`` (CUDA if there is one), ``cpu`` or ``cuda``.
        dtype: ``auto`` is float32 on a CPU and the checkpoint's own on a GPU.
        num_blocks: KV blocks; by default as many as the device has room for.
        utilization: Share of the GPU's memory that weights and KV cache may take.
        draft: A model that will be loaded beside it, and is left room for.
        compiler: A backend of torch.compile, such as ``inductor``, which the forward goes through where that
            is faster; see `compile_choice`.
        graphs: Capture CUDA graphs, where there is CUDA.
        told: Hears how many are captured, as it goes.

    Raises:
        ModelError: No such model, no such device, an architecture that cannot be served, or a named shape
            that does not fit into the memory that is free.
        ShapeError: A named shape without that many layers.
    """
    on = _device(device)
    new_capture = CudaCapture if graphs and on == "cuda" else None
    if dtype not in ("auto", *DTYPES):
        raise ModelError(f"unknown dtype {dtype!r}; one of auto, {', '.join(DTYPES)}")
    beside = draft_need(draft) if draft is not None and num_blocks is None else None
    shape = named_shape(model)
    if shape is not None:
        made = dtype_of(shape.sizes, dtype, on)
        drafts = named_shape(draft) if draft is not None else None
        kv_tokens = num_blocks * block_size if num_blocks is not None else None
        models = [(shape.name, shape.sizes, made)]
        if drafts is not None:
            models.append((drafts.name, drafts.sizes, DRAFT_DTYPE))
        if why := why_too_large(models, room_bytes(on, utilization), kv_tokens):
            raise ModelError(why)
        return serve(
            random_network(shape.config, DTYPES[made], on),
            name=shape.shown,
            backend=backend,
            block_size=block_size,
            num_blocks=num_blocks,
            max_slots=max_slots,
            utilization=utilization,
            beside=beside,
            compiler=compiler,
            new_capture=new_capture,
            told=told,
        )
    torch_dtype = DTYPES.get(dtype, torch.float32 if on == "cpu" else "auto")
    path, shown = locate(model)
    silent_hub = not Path(path).is_dir() and not hub_answers()
    config = read_config(path, shown, silent_hub)
    refuse_unservable(config, shown)
    network = read_network(path, shown, torch_dtype, silent_hub).to(on).eval()
    return serve(
        network,
        name=shown,
        backend=backend,
        block_size=block_size,
        num_blocks=num_blocks,
        max_slots=max_slots,
        utilization=utilization,
        beside=beside,
        compiler=compiler,
        new_capture=new_capture,
        told=told,
    )


def serve(
    network: Any,
    *,
    name: str,
    backend: str = "auto",
    block_size: int = 16,
    num_blocks: int | None = None,
    max_slots: int = 64,
    utilization: float = 0.9,
    beside: Need | None = None,
    compiler: str | None = None,
    memory: DeviceMemory | None = None,
    new_capture: Callable[[], Capture] | None = None,
    told: Told | None = None,
) -> TorchExecutor:
    """An executor for a loaded transformers model; checks it against its own forward.

    Args:
        beside: Of a draft model that will have as many KV blocks.
        compiler: As of `load_executor`.
        memory: What the KV cache finds room in; by default a GPU's own, or on a CPU a share of what is free.
        new_capture: Makes what makes graphs of steps, which a backend that can be captured will have.
        told: Hears how many are captured, as it goes.

    Raises:
        ModelError: The paged model does not compute what the model computes.
        OutOfDeviceMemoryError: Not even the steps that check it fit beside the weights.
    """
    config = network.config.get_text_config()
    device = next(network.parameters()).device
    if memory is None and device.type == "cuda":
        memory = CudaMemory()
    max_context, window = bounds.max_context(config), bounds.window(config)
    bound: dict[str, Any] = {}
    if window is not None and window > selfcheck.LONGEST_WINDOW:
        # What lies beyond could not be checked, and some architectures window by the mask alone.
        if window < max_context:
            bound = {"context_bound_by_window": [window, max_context]}
        max_context, window = min(max_context, window), None
    texts = selfcheck.prompts(config.vocab_size, max_context, window)
    _take_apart(network)
    with watched(network) as mergeable:
        expected = selfcheck.own_logits(network, texts)
    _switch_attention(network, name)
    attention, attention_facts = _attention(
        backend, network, block_size, name, CAPTURABLE if new_capture is not None else None
    )
    forward_facts, forward = choose_forward(network, attention, max_context, mergeable)
    facts: dict[str, Any] = {
        "name": name,
        "architecture": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": device.type,
        "attention_backend": attention.name,
        **attention_facts,
        **forward_facts,
        **bound,
    }

    def executor(blocks: int, computed_by: Forward = forward) -> TorchExecutor:
        return TorchExecutor(
            network,
            computed_by,
            attention.new_pools,
            num_blocks=blocks,
            block_size=block_size,
            max_slots=max(max_slots, len(texts)),
            max_context=max_context,
            eos_token_ids=bounds.eos_tokens(network),
            model_info=facts,
        )

    probe = executor(sum(-(-(len(text) + 1) // block_size) for text in texts))
    try:
        error = _self_check(probe, texts, expected, name)
    except ModelError:
        replaced = [fact for fact in ("merged_projections", *fused.FACTS) if facts.get(fact)]
        if not replaced:
            raise
        _take_apart(network)
        facts |= dict.fromkeys(replaced, 0)
        error = _self_check(probe, texts, expected, name)
    facts["self_check_error"] = error
    facts["kv_bytes_per_token"] = probe.cache.bytes_per_token
    if compiler is not None:
        facts |= compile_if_faster(
            probe,
            compiled_forward(network, attention, compiler),
            executor,
            lambda: selfcheck.worst_error(probe, texts, expected),
            PREFILL_TOKENS if num_blocks is None else min(PREFILL_TOKENS, num_blocks * block_size),
        )
    new_executor = partial(executor, computed_by=probe.forward)
    if attention.name not in CAPTURABLE:
        new_capture = None
    blocks = num_blocks
    if blocks is None:
        graph_bytes = bytes_of_graphs(probe, new_capture()) if new_capture else 0
        blocks, told_of_room = blocks_that_fit(probe, new_executor, utilization, beside, memory, graph_bytes)
        facts |= told_of_room
    facts["num_blocks"], facts["block_size"] = blocks, block_size
    served = new_executor(blocks)
    if new_capture is not None:
        facts["cuda_graphs"] = capture_graphs(served, new_capture(), told)
        if blocks >= probe.num_blocks:
            facts["cuda_graphs"] |= _graphs_check(served, texts, expected)
    return served


def _take_apart(network: Any) -> None:
    """All modules compute by their own code again."""
    take_apart(network)
    fused.take_apart(network)


def refuse_unservable(config: Any, name: str) -> None:
    """Refuse by name what cannot be served, before anything is loaded.

    Raises:
        ModelError: Encoder-decoder, recurrent state, multimodal input, or known to be silently wrong.
    """
    why = why_unservable(
        config.model_type,
        encoder_decoder=bool(getattr(config, "is_encoder_decoder", False)),
        multimodal=hasattr(config, "vision_config") or hasattr(config, "audio_config"),
    )
    if why is not None:
        raise ModelError(f"{name}: {why}")


def _attention(
    backend: str, network: Any, block_size: int, name: str, among: Collection[str] | None
) -> tuple[AttentionBackend, dict[str, Any]]:
    """The backend asked for, or the fastest that can serve the model, and what was measured to find it.

    Where steps are captured, only those that can be are chosen ``among``, as the time of attention alone does
    not show what it costs to launch the rest of a layer kernel by kernel.
    """
    config, device = network.config.get_text_config(), network.device
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    try:
        if device.type == "cuda" and backend in ("auto", *OPTIONAL):
            capability = torch.cuda.get_device_capability(device)
            return choose_for_gpu(backend, asked_by(network), block_size, device, capability, among=among)
        return choose_backend(backend, device.type, network.dtype, head_dim, block_size), {}
    except ValueError as refusal:
        raise ModelError(str(refusal)) from None
    except (RuntimeError, TypeError, KeyError, AttributeError) as failure:
        raise _unpaged(network, name, failure) from failure


def _unpaged(network: Any, name: str, failure: Exception) -> ModelError | OutOfDeviceMemoryError:
    """What it was that failed: the model, or only the memory."""
    if isinstance(failure, RuntimeError) and ran_out(failure):
        told = out_of_memory(network.device, failure, "in the small steps that check a model when it loads")
        return OutOfDeviceMemoryError(f"{name}: {told}; use a smaller model")
    return ModelError(f"{name}: {network.config.model_type} cannot run on a paged KV cache: {failure}")


def _self_check(
    probe: TorchExecutor, texts: list[list[int]], expected: list[torch.Tensor], name: str
) -> float:
    kind = probe.model.config.model_type
    try:
        error = selfcheck.worst_error(probe, texts, expected)
    except (RuntimeError, TypeError, KeyError, AttributeError) as failure:
        raise _unpaged(probe.model, name, failure) from failure
    tolerance = selfcheck.TOLERANCE[probe.model.dtype]
    if not error <= tolerance:
        raise ModelError(
            f"{name}: {kind} on a paged KV cache differs from its own forward by {error:.2g} of the "
            f"largest logit (tolerated: {tolerance:g}); it cannot be served"
        )
    return error


def _graphs_check(
    served: TorchExecutor, texts: list[list[int]], expected: list[torch.Tensor]
) -> dict[str, Any]:
    """Replayed steps are checked as eager ones were; wrong graphs are not used, which is what is told."""
    error = selfcheck.worst_error(served, texts, expected)
    if error <= selfcheck.TOLERANCE[served.model.dtype]:
        return {"self_check_error": error}
    served.use_graphs(None)
    return {"graphs": 0, "without": f"what they compute is wrong by {error:.2g} of the largest logit"}


def _device(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise ModelError(f"unknown device {device!r}; one of auto, cpu, cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ModelError("--device cuda: torch finds no CUDA device here; use --device cpu")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _switch_attention(network: Any, name: str) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, attention_forward)
    network.set_attn_implementation(ATTENTION_NAME)
    if network.config._attn_implementation != ATTENTION_NAME:
        raise ModelError(f"{name}: {network.config.model_type} does not take a custom attention function")
