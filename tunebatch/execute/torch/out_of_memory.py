"""What becomes of a step for which the device has no memory: an outcome that is told, not the end."""

from __future__ import annotations

import traceback

import torch

from tunebatch.engine.plan import OutOfDeviceMemoryError

# Libraries that allocate for themselves have errors of their own.
_TOLD = ("out of memory", "STATUS_ALLOC_FAILED")


def ran_out(error: BaseException) -> bool:
    """Whether an error of a step is that there was no memory."""
    return isinstance(error, torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(text in str(error) for text in _TOLD)
    )


def out_of_memory(device: torch.device, error: RuntimeError, step: str) -> OutOfDeviceMemoryError:
    """Frees what the step had made, and says in which step it was."""
    # Its functions' tensors would live as long as the error, which has their frames.
    traceback.clear_frames(error.__traceback__)
    if device.type == "cuda":
        torch.cuda.empty_cache()
    return OutOfDeviceMemoryError(f"out of device memory {step}")
