"""What all parts measure with: one device, one model at a time, and one set of ceilings."""

from __future__ import annotations

import gc
import time
import weakref
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from on_gpu import seam
from on_gpu.budget import Budget
from on_gpu.setting import Setting
from on_gpu.step_log import StepRows
from tunebatch.bench import measure
from tunebatch.cli.instruments import instruments_of
from tunebatch.engine.strategies import Strategy
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import load_executor
from tunebatch.measure.decode_balance import Peaks
from tunebatch.measure.result import RunResult
from tunebatch.measure.step_work import ModelWork
from tunebatch.measure.telemetry.beside import Instruments
from tunebatch.workload.named import scaled_to
from tunebatch.workload.prompts import RandomPrompts
from tunebatch.workload.spec import Workload, WorkloadSpec, build

STILL_HELD = "the model before this one is still held, and its memory with it"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to serve.

    Attributes:
        instruments: What its work is, and the GPU's telemetry where there is some.
        load_s: From its name to here, graphs included.
    """

    model: str
    executor: TorchExecutor
    instruments: Instruments
    load_s: float

    @property
    def work(self) -> ModelWork:
        assert self.instruments.work is not None, "a named shape can be counted"
        return self.instruments.work


@dataclass
class GpuBench:
    """Measures.

    Attributes:
        folder: Where results go.
        say: Told what happens.
        budget: Of the part that runs.
        ceilings: None until they are measured.
        steps: Of the part that runs.
    """

    setting: Setting
    folder: Path | None = None
    say: Callable[[str], None] = print
    budget: Budget = field(default_factory=lambda: Budget(60.0))
    ceilings: Peaks | None = None
    steps: StepRows = field(default_factory=StepRows)
    _loaded: tuple[tuple[object, ...], Loaded] | None = None

    @property
    def on_cuda(self) -> bool:
        return self.setting.device == "cuda"

    def load(
        self,
        model: str,
        dtype: str | None = None,
        graphs: bool | None = None,
        max_slots: int | None = None,
        compiler: str | None = None,
    ) -> Loaded:
        """The model, with random weights; the one that was loaded before goes, if it is another.

        Args:
            graphs: None: as the engine does by itself.
            compiler: Of torch.compile, for a forward that may be faster so; None: there is no such question.
        """
        setting = self.setting
        if graphs == seam.default(load_executor, "graphs"):
            graphs = None  # what was loaded so before need not be loaded again
        key = (model, dtype or setting.dtype, graphs, max_slots or setting.max_slots, compiler)
        if self._loaded is not None and self._loaded[0] == key:
            return self._loaded[1]
        self.release()
        self.say(f"loading {model}")
        began_s = time.perf_counter()
        executor = load_executor(
            model,
            device=setting.device,
            dtype=dtype or setting.dtype,
            backend=setting.backend,
            num_blocks=setting.num_blocks,
            max_slots=max_slots or setting.max_slots,
            compiler=compiler,
            **seam.switch(load_executor, graphs=graphs),
        )
        self.synchronize()
        load_s = time.perf_counter() - began_s
        loaded = Loaded(model, executor, instruments_of(executor), load_s)
        self._loaded = (key, loaded)
        return loaded

    def release(self) -> None:
        """Give the device's memory back; whoever still holds the model keeps it there, which is told."""
        if self._loaded is not None:
            before = weakref.ref(self._loaded[1].executor)
            self._loaded = None
            gc.collect()
            if before() is not None:
                self.say(STILL_HELD)
        if self.on_cuda:
            gc.collect()
            torch.cuda.empty_cache()

    def synchronize(self) -> None:
        if self.on_cuda:
            torch.cuda.synchronize()

    def workload(self, loaded: Loaded, spec: WorkloadSpec) -> Workload:
        """The requests of a description, all at once, shrunk where the model could not hold them."""
        on = loaded.executor
        kv_tokens = on.num_blocks * on.block_size
        return build(
            scaled_to(spec, on.max_context, kv_tokens),
            RandomPrompts(on.vocab_size),
            on.max_context,
            kv_tokens=kv_tokens,
            block_size=on.block_size,
            vocab_size=on.vocab_size,
        ).saturated()

    def run(
        self,
        loaded: Loaded,
        workload: Workload,
        chosen: Strategy,
        name: str,
        *,
        overlap: bool | None = None,
        glimpse_s: float | None = None,
        executor: Any = None,
    ) -> RunResult:
        """Serve a workload once; its steps are kept under the name.

        Args:
            overlap: None: as the engine does by itself.
            executor: Instead of the model's own.
        """
        instruments = Instruments(loaded.instruments.gpu, loaded.instruments.work, self.ceilings)
        result = measure(
            workload,
            chosen,
            executor or loaded.executor,
            glimpse_s=glimpse_s,
            instruments=instruments,
            **seam.switch(measure, overlap=overlap),
        )
        assert result.record is not None, "a run that was just measured has its records"
        self.steps.add_run(loaded.model, name, result.record)
        return result
