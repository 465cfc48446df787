"""Triton's interpreter cuts float32 off to bfloat16; a GPU rounds, which is what is tested."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
import triton.language as tl
from triton.runtime import interpreter


def round_as_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """Casts to bfloat16 round to the nearest, ties to even, while the test lasts."""
    cut_off = interpreter._convert_float

    def convert(numbers: Any, of: Any, to: Any, mode: Any) -> Any:
        if (of, to) != (tl.float32, tl.bfloat16):
            return cut_off(numbers, of, to, mode)
        rounded = torch.from_numpy(np.array(numbers, np.float32)).to(torch.bfloat16)
        return rounded.view(torch.int16).numpy().view(np.uint16)

    monkeypatch.setattr(interpreter, "_convert_float", convert)
