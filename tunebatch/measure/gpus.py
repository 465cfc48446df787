"""Published peaks of GPUs. None of them was measured here, and no kernel reaches them.

Arithmetic is dense, without the factor two of structured sparsity, of 16-bit matrix products that are summed
in 32 bits (bfloat16; float16 on the T4, which has no bfloat16), and of float32 outside the tensor cores.
Memory is what the driver reports (``nvidia-smi``), a little off what the name says.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Gpu:
    """A GPU as its maker describes it.

    Attributes:
        driver_names: What the driver calls it.
        bandwidth_gb_per_s: Of its memory, 1e9 bytes a second.
        tflops_16: Dense 16-bit matrix products, 1e12 operations a second.
        tflops_32: float32.
        source: The maker's document.
    """

    name: str
    driver_names: tuple[str, ...]
    memory_mib: int
    bandwidth_gb_per_s: float
    tflops_16: float
    tflops_32: float
    source: str

    @property
    def memory_bytes(self) -> int:
        return self.memory_mib * 2**20


GPUS: dict[str, Gpu] = {
    "a100-40g": Gpu(
        "NVIDIA A100 40 GB SXM", ("NVIDIA A100-SXM4-40GB",), 40960, 1555, 312, 19.5, "NVIDIA A100 datasheet"
    ),
    "a100-80g": Gpu(
        "NVIDIA A100 80 GB SXM", ("NVIDIA A100-SXM4-80GB",), 81920, 2039, 312, 19.5, "NVIDIA A100 datasheet"
    ),
    "a10g": Gpu("NVIDIA A10G", ("NVIDIA A10G",), 23028, 600, 70, 35, "NVIDIA A10G datasheet"),
    "b200": Gpu("NVIDIA B200", ("NVIDIA B200",), 183359, 8000, 2250, 80, "NVIDIA Blackwell HGX datasheet"),
    "h100": Gpu(
        "NVIDIA H100 SXM", ("NVIDIA H100 80GB HBM3",), 81559, 3350, 989, 67, "NVIDIA H100 datasheet"
    ),
    "h100-pcie": Gpu(
        "NVIDIA H100 PCIe", ("NVIDIA H100 PCIe",), 81559, 2000, 756, 51, "NVIDIA H100 datasheet"
    ),
    "h200": Gpu("NVIDIA H200 SXM", ("NVIDIA H200",), 143771, 4800, 989, 67, "NVIDIA H200 datasheet"),
    "l4": Gpu("NVIDIA L4", ("NVIDIA L4",), 23034, 300, 121, 30.3, "NVIDIA L4 datasheet"),
    "l40s": Gpu("NVIDIA L40S", ("NVIDIA L40S",), 46068, 864, 362, 91.6, "NVIDIA L40S datasheet"),
    "rtx-3090": Gpu(
        "NVIDIA GeForce RTX 3090", ("NVIDIA GeForce RTX 3090",), 24576, 936, 71, 35.6,
        "NVIDIA Ampere GA102 whitepaper",
    ),
    "rtx-4090": Gpu(
        "NVIDIA GeForce RTX 4090", ("NVIDIA GeForce RTX 4090",), 24564, 1008, 165.2, 82.6,
        "NVIDIA Ada architecture whitepaper",
    ),
    "rtx-5090": Gpu(
        "NVIDIA GeForce RTX 5090", ("NVIDIA GeForce RTX 5090",), 32607, 1792, 209.5, 104.8,
        "NVIDIA RTX Blackwell architecture whitepaper",
    ),
    "t4": Gpu("NVIDIA T4", ("Tesla T4",), 15360, 300, 65, 8.1, "NVIDIA T4 datasheet"),
}  # fmt: skip


def gpu_of_driver(name: str) -> Gpu | None:
    """The GPU that the driver calls so; None for one that is not in the table."""
    return next((gpu for gpu in GPUS.values() if name in gpu.driver_names), None)
