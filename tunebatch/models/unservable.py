"""Which architectures a paged KV cache cannot serve, known by name before anything is loaded."""

from __future__ import annotations

# Accept a custom attention function and compute something else with it.
SILENTLY_WRONG = {"diffllama", "minimax", "hrm_text", "lfm2", "lfm2_moe", "llama4", "llama4_text"}
RECURRENT = {
    "mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "falcon_h1", "nemotron_h", "olmo_hybrid",
    "qwen3_next", "qwen3_5", "qwen3_5_moe", "rwkv", "recurrent_gemma", "xlstm", "zamba", "zamba2",
    "kimi_linear", "granitemoehybrid",
}  # fmt: skip


def why_unservable(kind: str, *, encoder_decoder: bool, multimodal: bool) -> str | None:
    """Why a model cannot be served, in words that begin with its kind; None if it may.

    Args:
        kind: ``model_type`` of the config.
        encoder_decoder: The config says that it is one.
        multimodal: The config describes an encoder of images or sound.
    """
    if encoder_decoder:
        return f"{kind} is an encoder-decoder; only decoders can be served"
    if kind in RECURRENT:
        return f"{kind} keeps recurrent state, which a paged KV cache cannot hold"
    if kind in SILENTLY_WRONG:
        return f"{kind} computes attention that a paged kernel does not reproduce"
    if multimodal:
        return f"{kind} takes images or sound; only text decoders can be served"
    return None
