"""How CUDA graphs are captured, on a driver that only notes what it is asked for."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from tunebatch.execute.torch.graphs import capture as captures
from tunebatch.execute.torch.graphs.capture import CudaCapture


class Driver:
    """Streams, pools and graphs by name; everything is noted in order."""

    def __init__(self) -> None:
        self.noted: list[str] = []
        self.stream = "default"
        self.pools = 0

    def new_pool(self) -> tuple[int, int]:
        self.pools += 1
        return (0, self.pools)

    @contextmanager
    def on(self, stream: str) -> Iterator[None]:
        before, self.stream = self.stream, stream
        try:
            yield
        finally:
            self.stream = before

    @contextmanager
    def graph(self, graph: Any, *, pool: Any, stream: str, capture_error_mode: str) -> Iterator[None]:
        """As torch's: after an error its stream stays the current one."""
        self.noted.append(f"begin in pool {pool[1]}, {capture_error_mode}")
        self.stream, before = stream, self.stream
        yield
        self.stream = before
        self.noted.append("end")


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> Iterator[Driver]:
    made = Driver()

    class Graph:
        def replay(self) -> None:
            made.noted.append("replay")

    for name, fake in (
        ("Stream", lambda: "side"),
        ("stream", made.on),
        ("graph_pool_handle", made.new_pool),
        ("CUDAGraph", Graph),
        ("graph", made.graph),
        ("synchronize", lambda: made.noted.append("synchronize")),
        ("empty_cache", lambda: made.noted.append("empty")),
        ("mem_get_info", lambda: (30, 100)),
    ):
        monkeypatch.setattr(torch.cuda, name, fake)
    captures._stream.cache_clear()
    yield made
    captures._stream.cache_clear()


def test_a_function_runs_before_it_is_captured_beside_and_then_replays(driver: Driver) -> None:
    capture = CudaCapture()
    replay = capture(lambda: driver.noted.append(f"run on {driver.stream}"))
    captured = ["run on default", "synchronize", "begin in pool 1, thread_local", "run on side", "end"]
    assert driver.noted == captured and driver.stream == "default"
    replay()
    assert driver.noted[5:] == ["replay"]
    capture(lambda: None)
    assert "begin in pool 1, thread_local" in driver.noted[6:]
    assert capture.taken_bytes() == 70
    assert driver.noted[-2:] == ["synchronize", "empty"]


def test_a_capture_that_fails_leaves_neither_its_stream_nor_its_pool(driver: Driver) -> None:
    capture = CudaCapture()

    def fails() -> None:
        if driver.stream == "side":
            raise torch.OutOfMemoryError("out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        capture(fails)
    assert driver.stream == "default"
    capture(lambda: None)
    assert driver.noted[-2:] == ["begin in pool 2, thread_local", "end"]
    # A pool that graphs live in stays theirs.
    with pytest.raises(torch.OutOfMemoryError):
        capture(fails)
    capture(lambda: None)
    assert driver.noted[-2:] == ["begin in pool 2, thread_local", "end"]
