"""Part 2: what the device can do at most, by which everything after it is judged."""

from __future__ import annotations

from claimed.claim import Table

from on_gpu.bench import GpuBench
from on_gpu.found import Found, Part
from tunebatch.execute.torch.ceilings import measure_ceilings
from tunebatch.execute.torch.load import DTYPES


def measure(bench: GpuBench) -> Found:
    """Leaves them to the parts that follow."""
    bench.release()
    setting = bench.setting
    seconds = min(setting.ceilings_s, bench.budget.left_s())
    found = measure_ceilings(setting.device, DTYPES[setting.dtype], seconds)
    bench.ceilings = found
    return Found(
        setting=f"{setting.dtype} matrix products, and copies that read and write each byte; the best repeat "
        f"within {seconds:.1f} s",
        tables=[
            Table(
                "Ceilings",
                "what | measured",
                [
                    f"matrix products | {found.flops_per_s / 1e12:.4g} TFLOP/s",
                    f"memory | {found.bytes_per_s / 1e9:.4g} GB/s",
                ],
            )
        ],
        data={"flops_per_s": found.flops_per_s, "bytes_per_s": found.bytes_per_s},
    )


PART = Part("ceilings", "What can the device do at most?", 8.0, measure)
