"""Load a model, switch its attention to the paged one, check it, and size the KV cache."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tunebatch.execute.torch import selfcheck
from tunebatch.execute.torch.attention import choose_backend
from tunebatch.execute.torch.attention.base import attention_forward
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.forward import choose_forward
from tunebatch.execute.torch.graphs.capture import Capture, CudaCapture
from tunebatch.execute.torch.graphs.captured import CAPTURABLE, Told, bytes_of_graphs, capture_graphs
from tunebatch.execute.torch.random_weights import random_network
from tunebatch.execute.torch.room import room_bytes
from tunebatch.measure.kv_room import blocks_of_slots, cpu_kv_bytes
from tunebatch.measure.shape_room import Need, dtype_of, need, why_too_large
from tunebatch.models.hub import hub_answers, silence_told
from tunebatch.models.named_shape import named_shape, nearest_shape
from tunebatch.models.unservable import why_unservable

ATTENTION_NAME = "tunebatch"
# Half the bytes make a draft step cheaper, and what it rounds costs no token.
DRAFT_DTYPE = "bfloat16"
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


class ModelError(ValueError):
    """A model that cannot be served, and why; one line for the user."""


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
        draft: A model that will be loaded beside it; a named shape is left room for.
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
            beside=need(drafts.sizes, DRAFT_DTYPE) if drafts is not None else None,
            new_capture=new_capture,
            told=told,
        )
    torch_dtype = DTYPES.get(dtype, torch.float32 if on == "cpu" else "auto")
    path, shown = _locate(model)
    silent_hub = not Path(path).is_dir() and not hub_answers()
    config = _config(path, shown, silent_hub)
    refuse_unservable(config, shown)
    network = _network(path, shown, torch_dtype, silent_hub).to(on).eval()
    return serve(
        network,
        name=shown,
        backend=backend,
        block_size=block_size,
        num_blocks=num_blocks,
        max_slots=max_slots,
        utilization=utilization,
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
    new_capture: Callable[[], Capture] | None = None,
    told: Told | None = None,
) -> TorchExecutor:
    """An executor for a loaded transformers model; checks it against its own forward.

    Args:
        beside: Of a draft model that will have as many KV blocks.
        new_capture: Makes what makes graphs of steps, which a backend that can be captured will have.
        told: Hears how many are captured, as it goes.

    Raises:
        ModelError: The paged model does not compute what the model computes.
    """
    config = network.config.get_text_config()
    device = next(network.parameters()).device
    max_context, window = _max_context(config), _window(config)
    bound: dict[str, Any] = {}
    if window is not None and window > selfcheck.LONGEST_WINDOW:
        # What lies beyond could not be checked, and some architectures window by the mask alone.
        if window < max_context:
            bound = {"context_bound_by_window": [window, max_context]}
        max_context, window = min(max_context, window), None
    texts = selfcheck.prompts(config.vocab_size, max_context, window)
    expected = selfcheck.own_logits(network, texts)
    _switch_attention(network, name)
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    try:
        attention = choose_backend(backend, device.type, network.dtype, head_dim, block_size)
    except ValueError as refusal:
        raise ModelError(str(refusal)) from None
    forward_name, forward = choose_forward(network, attention, max_context)
    facts: dict[str, Any] = {
        "name": name,
        "architecture": type(network).__name__,
        "parameters": sum(p.numel() for p in network.parameters()),
        "dtype": str(network.dtype).removeprefix("torch."),
        "device": device.type,
        "attention_backend": attention.name,
        "forward": forward_name,
        **bound,
    }

    def executor(blocks: int) -> TorchExecutor:
        return TorchExecutor(
            network,
            forward,
            attention.new_pools,
            num_blocks=blocks,
            block_size=block_size,
            max_slots=max(max_slots, len(texts)),
            max_context=max_context,
            eos_token_ids=_eos(network),
            model_info=facts,
        )

    probe = executor(sum(-(-(len(text) + 1) // block_size) for text in texts))
    error = _self_check(probe, texts, expected, name)
    facts["self_check_error"] = error
    facts["kv_bytes_per_token"] = probe.cache.bytes_per_token
    if attention.name not in CAPTURABLE:
        new_capture = None
    graph_bytes = bytes_of_graphs(probe, new_capture()) if new_capture and num_blocks is None else 0
    blocks = num_blocks or _blocks_that_fit(probe, max_slots, utilization, beside, graph_bytes)
    facts["num_blocks"], facts["block_size"] = blocks, block_size
    served = executor(blocks)
    if new_capture is not None:
        facts["cuda_graphs"] = capture_graphs(served, new_capture(), told)
        if blocks >= probe.num_blocks:
            facts["cuda_graphs"] |= _graphs_check(served, texts, expected)
    return served


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


def _self_check(
    probe: TorchExecutor, texts: list[list[int]], expected: list[torch.Tensor], name: str
) -> float:
    kind = probe.model.config.model_type
    try:
        error = selfcheck.worst_error(probe, texts, expected)
    except (RuntimeError, TypeError, KeyError, AttributeError) as failure:
        raise ModelError(f"{name}: {kind} cannot run on a paged KV cache: {failure}") from failure
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


def _locate(model: str) -> tuple[str, str]:
    if model == "bundled":
        from tunebatch.models import bundled_target

        return str(bundled_target()), "bundled"
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{model}: no config.json in this folder; is it a Hugging Face model?")
        return str(path), path.name
    if path.is_absolute() or model.startswith((".", "~")):
        raise ModelError(
            f"{model}: no such folder; give a local path, a hub id (owner/name), 'bundled' or a named shape"
        )
    if model.count("/") != 1:
        raise ModelError(
            f"{model}: no such folder or named shape; did you mean {nearest_shape(model)!r}? A local path, a "
            "hub id (owner/name) or 'bundled' will do too"
        )
    return model, model


def _config(path: str, name: str, silent_hub: bool) -> Any:
    from transformers import AutoConfig

    with _one_line(name, silent_hub):
        return AutoConfig.from_pretrained(path, local_files_only=silent_hub)


def _network(path: str, name: str, dtype: Any, silent_hub: bool) -> Any:
    from transformers import AutoModelForCausalLM

    with _one_line(name, silent_hub):
        return AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="eager",
            local_files_only=silent_hub,
        )


class _one_line(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads as a statement
    """Turn what transformers says about a model it cannot load into one line."""

    def __init__(self, name: str, silent_hub: bool) -> None:
        self._name = name
        self._silent_hub = silent_hub
        self._silence = contextlib.redirect_stderr(io.StringIO())

    def __enter__(self) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        for library in ("transformers", "huggingface_hub"):  # which tells of each try to reach the hub
            logging.getLogger(library).setLevel(logging.ERROR)
        self._silence.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._silence.__exit__(kind, error, trace)
        # Not only OSError: safetensors, tokenizers and model code each raise classes of their own.
        if isinstance(error, Exception):
            if self._silent_hub:
                raise ModelError(silence_told(self._name)) from error
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{self._name}: cannot be loaded: {first}") from error


def _switch_attention(network: Any, name: str) -> None:
    from transformers import AttentionInterface

    AttentionInterface.register(ATTENTION_NAME, attention_forward)
    network.set_attn_implementation(ATTENTION_NAME)
    if network.config._attn_implementation != ATTENTION_NAME:
        raise ModelError(f"{name}: {network.config.model_type} does not take a custom attention function")


def _max_context(config: Any) -> int:
    limit: Any = getattr(config, "max_position_embeddings", None) or getattr(config, "n_positions", 2048)
    rope = getattr(config, "rope_parameters", None) or {}
    if isinstance(rope, dict) and rope.get("rope_type") in ("longrope", "dynamic"):
        # These change their frequencies with the longest position in the batch, so that a request's
        # tokens would depend on its neighbours; below this length they do not.
        limit = min(limit, int(rope.get("original_max_position_embeddings", limit)))
    return int(limit)


def _window(config: Any) -> int | None:
    """How far back tokens see, if less than the context; the shortest window where layers differ."""
    found = [
        getattr(config, name, None) for name in ("sliding_window", "attention_chunk_size", "window_size")
    ]
    windows = [int(window) for window in found if isinstance(window, int) and window > 0]
    return min(windows) if windows and getattr(config, "use_sliding_window", True) else None


def _eos(network: Any) -> frozenset[int]:
    eos = getattr(network.generation_config, "eos_token_id", None)
    if eos is None:
        eos = network.config.get_text_config().eos_token_id
    return frozenset([eos] if isinstance(eos, int) else eos or ())


def _blocks_that_fit(
    probe: TorchExecutor, max_slots: int, utilization: float, beside: Need | None, graph_bytes: int
) -> int:
    """As many blocks as all slots could fill, within the memory that is there."""
    wanted = blocks_of_slots(max_slots, probe.max_context, probe.block_size)
    room = room_bytes(probe.device.type, utilization) - graph_bytes
    per_token = probe.cache.bytes_per_token
    if probe.device.type == "cpu":
        room = cpu_kv_bytes(room, per_token * probe.max_context)
    if beside is not None:
        room -= beside.weight_bytes + beside.step_bytes if probe.device.type == "cuda" else 0
        per_token += beside.kv_bytes_per_token
    per_block = max(1, per_token * probe.block_size)
    if room < per_block:
        raise ModelError("no memory is left for a KV cache after the weights; use a smaller model")
    return min(wanted, room // per_block)
