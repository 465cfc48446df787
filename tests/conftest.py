"""Settings for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Tiny models gain nothing from threads, and spinning ones take the cores from whatever else runs.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Read when a kernel is defined. Without a GPU, and so without its driver, kernels are interpreted.
if not Path("/proc/driver/nvidia").exists():
    os.environ.setdefault("TRITON_INTERPRET", "1")


@pytest.fixture(autouse=True)
def no_width_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that test in parallel are told the width of the terminal, which screens would obey."""
    monkeypatch.delenv("COLUMNS", raising=False)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slow", action="store_true", help="run the tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--slow"):
        return
    skip = pytest.mark.skip(reason="hundreds of like cases, of which the quick ones ran: pytest --slow")
    for item in items:
        if "slow" in item.keywords:
            item.add_marker(skip)
