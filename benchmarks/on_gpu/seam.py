"""What the engine of this version can be told: its switches, found by looking at its functions.

A version without a switch is measured as it is, and what the switch was worth is told as not available.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from tunebatch.bench import measure
from tunebatch.execute.torch.load import load_executor


def takes(function: Callable[..., Any], name: str) -> bool:
    return name in inspect.signature(function).parameters


def switch(function: Callable[..., Any], **wanted: Any) -> dict[str, Any]:
    """Of these keywords those that the function takes; None stands for its default."""
    return {name: value for name, value in wanted.items() if value is not None and takes(function, name)}


def default(function: Callable[..., Any], name: str) -> Any:
    """Of one of its keywords; None of one that it does not take."""
    return inspect.signature(function).parameters[name].default if takes(function, name) else None


def has_graphs(device: str) -> bool:
    """CUDA graphs can be switched on and off."""
    return device == "cuda" and takes(load_executor, "graphs")


def has_overlap() -> bool:
    """Planning beside the running step can be switched on and off."""
    return takes(measure, "overlap")
