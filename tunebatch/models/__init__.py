"""The bundled pair of models: where it lies, and the script that made it."""

from __future__ import annotations

from pathlib import Path

_BUNDLED = Path(__file__).parent / "bundled"


def bundled_target() -> Path:
    """Folder of the bundled target: configuration, bfloat16 weights and tokenizer."""
    return _BUNDLED / "target"


def bundled_draft() -> Path:
    """Folder of the bundled draft, which shares the target's tokenizer."""
    return _BUNDLED / "draft"


def bundled_corpus() -> Path:
    """The held-out prompt corpus: safetensors with ``tokens`` (int16) and ``starts`` (int32)."""
    return _BUNDLED / "corpus.safetensors"
