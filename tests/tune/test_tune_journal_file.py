"""A journal outlives kills in the middle of a line, full disks, and a second process."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from tune_fake import Device

from tunebatch.tune.journal import FILE
from tunebatch.tune.journal_file import JournalFile, SweepInUseError, only_writer
from tunebatch.tune.study import run_sweep


def test_a_line_that_a_kill_cut_short_goes_and_the_sweep_resumes(tmp_path: Path) -> None:
    first = Device()
    run_sweep(first, strategies=("static",), directory=tmp_path, max_trials=3)
    journal = tmp_path / FILE
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]) + lines[-2][:7])
    again = Device()
    outcome = run_sweep(again, strategies=("static",), directory=tmp_path, max_trials=4)
    assert len(outcome.trials) == 4
    assert len({trial.config for trial in outcome.trials}) == 4
    assert 0 < len(again.asked) < len(first.asked)
    assert all(line.startswith(b"{") for line in journal.read_bytes().splitlines())


@pytest.mark.parametrize("fails", ["write", "fsync"])
def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: str) -> None:
    journal = JournalFile(tmp_path / FILE)
    journal.append_logs([{"a": 1}, {"b": 2}])
    if fails == "write":
        resource = pytest.importorskip("resource")
        size = (tmp_path / FILE).stat().st_size
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size + 3, limits[1]))
        try:
            with pytest.raises(OSError, match="too large"):
                journal.append_logs([{"c": 3}])
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    else:

        def full(descriptor: int) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", full)
            with pytest.raises(OSError, match="No space left"):
                journal.append_logs([{"c": 3}])
    journal.append_logs([{"d": 4}])
    assert list(JournalFile(tmp_path / FILE).read_logs(0)) == [{"a": 1}, {"b": 2}, {"d": 4}]


def test_two_sweeps_in_one_folder_are_refused(tmp_path: Path) -> None:
    device = Device()
    with only_writer(tmp_path), pytest.raises(SweepInUseError, match="another sweep is at work there"):
        run_sweep(device, strategies=("static",), directory=tmp_path, max_trials=1)
    assert device.asked == []
    run_sweep(device, strategies=("static",), directory=tmp_path, max_trials=1)
    assert device.asked
