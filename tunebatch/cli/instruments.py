"""What can be looked at beside the runs of a loaded model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tunebatch.cli.errors import CliError

if TYPE_CHECKING:
    from tunebatch.measure.decode_balance import Peaks
    from tunebatch.measure.step_work import ModelWork
    from tunebatch.measure.telemetry.beside import Instruments
    from tunebatch.measure.telemetry.nvml import Gpu


def instruments_of(executor: Any, price_per_hour: float | None = None) -> Instruments:
    """The GPU that it computes on, and what its model has to do; None of what cannot be told."""
    from tunebatch.measure.telemetry.beside import Instruments

    return Instruments(_gpu_of(executor), _work_of(executor), price_per_hour=price_per_hour)


def measured_ceilings(executor: Any) -> Peaks:
    """Of the executor's device, in the dtype of its model.

    Raises:
        CliError: The KV cache has left no room to measure in.
    """
    import torch

    from tunebatch.execute.torch.ceilings import measure_ceilings

    try:
        return measure_ceilings(executor.device, executor.model.dtype)
    except torch.OutOfMemoryError:
        raise CliError(
            "--telemetry: the KV cache leaves no room on the device to measure in; lower [device] utilization"
        ) from None


def open_gpu_of(device: Any) -> Gpu:
    """The GPU that torch computes on, which NVML may count otherwise than CUDA.

    Raises:
        NvmlError: See ``open_gpu``.
    """
    import torch

    from tunebatch.measure.telemetry.nvml import open_gpu

    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    return open_gpu(None if uuid is None else str(uuid))


def _gpu_of(executor: Any) -> Gpu | None:
    from tunebatch.measure.telemetry.nvml import NvmlError

    if executor.model_info.get("device") != "cuda":
        return None
    try:
        return open_gpu_of(executor.device)
    except NvmlError:  # doctor tells why
        return None


def _work_of(executor: Any) -> ModelWork | None:
    """None of an architecture that cannot be counted, or of an executor without a model."""
    from tunebatch.measure.memory_plan import KV_BYTES
    from tunebatch.measure.step_work import model_work
    from tunebatch.models.architecture import ConfigError, architecture

    model = getattr(executor, "model", None)
    if model is None:
        return None
    try:
        sizes = architecture(model.config.get_text_config().to_dict())
    except ConfigError:
        return None
    return model_work(sizes, KV_BYTES[executor.model_info["dtype"]])
