"""What goes wrong on real machines, with real processes and the bundled model: what was measured survives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import transformers

from tunebatch import bench
from tunebatch.cli.main import run_command

if sys.platform == "win32":
    pytest.skip("sends POSIX signals and sets resource limits", allow_module_level=True)

import resource

PROFILE = """
[model]
backend = "packed"

[workload]
name = "quickstart"
prompt_tokens = "uniform:4-8"
output_tokens = "uniform:2-3"
requests = 12

[slo]
p50_ttft = "60s"

[search]
strategies = ["static", "continuous"]
objective = "throughput"
trials = 400
time = "10m"
confirm = 1
"""


PATIENCE_S = 300.0  # with a slow machine


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """The command line in a process of its own, which Ctrl-C reaches even where ours ignores it."""
    return subprocess.Popen(
        [sys.executable, "-m", "tunebatch.cli", *arguments],
        cwd=cwd,
        env={**os.environ, "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )


def journal(folder: Path) -> list[dict[str, Any]]:
    """Every whole line."""
    path = folder / "optuna.journal"
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    return [json.loads(line) for line in lines]


def measured(folder: Path) -> list[tuple[str, str]]:
    """The configurations that the journal holds measurements of, in order; a second one would show twice.

    A trial that was killed before Optuna was told of it may be asked for again, and then has the facts of
    the first: the same capacity to the last digit, which no second measurement would give.
    """
    attrs = [line for line in journal(folder) if "user_attr" in line and "trial_id" in line]
    repeats = {line["trial_id"] for line in attrs if "repeat_of" in line["user_attr"]}
    facts = [
        line["user_attr"]["facts"]
        for line in attrs
        if "facts" in line["user_attr"] and line["trial_id"] not in repeats
    ]
    distinct = dict.fromkeys((one["strategy"], json.dumps(one["knobs"]), one["capacity"]) for one in facts)
    return [(name, knobs) for name, knobs, _ in distinct]


def config(result: Path) -> tuple[str, str]:
    """Whose result a file is, as in ``measured``."""
    stored = json.loads(result.read_text())["tunebatch"]
    return stored["strategy"], json.dumps(stored["knobs"])


def wait_for(process: subprocess.Popen[str], folder: Path, count: int) -> None:
    """Until so many configurations are measured."""
    deadline = time.monotonic() + PATIENCE_S
    while len(measured(folder)) < count:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "no progress"
        time.sleep(0.02)


def error_lines(text: str) -> list[str]:
    assert "Traceback" not in text
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.fixture(scope="module")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int, str, str]]:
    """A sweep that Ctrl-C ended after two configurations: its folder, exit code, stdout and stderr."""
    home = tmp_path_factory.mktemp("interrupted")
    (home / "tiny.toml").write_text(PROFILE)
    process = start("sweep", "-p", "tiny.toml", "-o", "here", cwd=home)
    wait_for(process, home / "here", 2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=PATIENCE_S)
    yield home, process.returncode, out, err


@dataclass(frozen=True)
class Broken:
    """How a resumed sweep broke off: where, its exit code, its stderr, and what its folder held by then."""

    home: Path
    code: int
    err: str
    whole_lines: bool
    litter: list[Path]


def kill(process: subprocess.Popen[str], folder: Path) -> None:
    process.send_signal(signal.SIGKILL)


def fill_the_disk(process: subprocess.Popen[str], folder: Path) -> None:
    # No file may grow beyond this: the journal's next lines find no room, perhaps in the middle of one.
    size = (folder / "optuna.journal").stat().st_size + 200
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (size, size))


def break_off(home: Path, how: Callable[[subprocess.Popen[str], Path], None]) -> Broken:
    """Resumes the sweep, and breaks it off once it has measured one more configuration."""
    folder = home / "here"
    known = len(measured(folder))
    process = start("sweep", "--resume", "here", cwd=home)
    wait_for(process, folder, known + 1)
    how(process, folder)
    _, err = process.communicate(timeout=PATIENCE_S)
    assert len(measured(folder)) > known
    whole = (folder / "optuna.journal").read_bytes().endswith(b"\n")
    return Broken(home, process.returncode, err, whole, list(folder.rglob("*.tmp")))


@pytest.fixture(scope="module")
def broken(
    interrupted: tuple[Path, int, str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Future[Broken]]]:
    """Copies of the interrupted sweep, broken off again beside each other: processes spend their time on
    starting."""
    ways = {"killed": kill, **({"full": fill_the_disk} if hasattr(resource, "prlimit") else {})}
    with ThreadPoolExecutor() as pool:
        found = {}
        for name, how in ways.items():
            home = tmp_path_factory.mktemp(name) / "home"
            shutil.copytree(interrupted[0], home)
            found[name] = pool.submit(break_off, home, how)
        yield found


@pytest.fixture
def finish(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[[Path], None]:
    """Resumes a sweep for two more configurations, and checks that none was measured twice."""
    # Nothing is timed, and a collection takes longer than a run.
    monkeypatch.setattr(bench, "_without_gc", nullcontext)

    def finish(home: Path) -> None:
        folder = home / "here"
        before = journal(folder)
        known = measured(folder)
        runs = [path for path in folder.glob("*/**/result.json") if config(path) in known]
        kept = {path: path.stat().st_mtime_ns for path in runs}
        assert {config(path) for path in kept} == set(known)
        monkeypatch.chdir(home)
        code = run_command(["sweep", "--resume", "here", "--trials", str(len(known) + 2)])
        out, err = capsys.readouterr()
        assert code == 0, err
        assert error_lines(err) == []
        assert "tok/s inside the SLO" in out.splitlines()[0]
        assert json.loads((folder / "sweep.json").read_text())["winner"] is not None
        now = measured(folder)
        assert journal(folder)[: len(before)] == before
        assert now[: len(known)] == known
        assert len(now) == len(set(now))
        # A killed trial that Optuna was not told of does not count as one of the trials asked for.
        assert len(now) - len(known) in (2, 3)
        written = [path for path, changed in kept.items() if path.stat().st_mtime_ns != changed]
        assert written == []

    return finish


def test_ctrl_c_shows_and_keeps_what_was_measured(interrupted: tuple[Path, int, str, str]) -> None:
    home, code, out, err = interrupted
    assert code == 130, err
    assert "(interrupted; this is what was measured)" in " ".join(out.split())
    assert "static" in out and "continuous" in out
    assert error_lines(err) == []
    assert "tunebatch sweep --resume here" in err
    kept = json.loads((home / "here" / "sweep.json").read_text())
    assert kept["interrupted"]
    assert [trial["strategy"] for trial in kept["trials"]][:2] == ["static", "continuous"]


def test_a_sweep_that_was_killed_goes_on_where_it_was(
    broken: dict[str, Future[Broken]], finish: Callable[[Path], None]
) -> None:
    killed = broken["killed"].result()
    assert killed.code == -signal.SIGKILL
    finish(killed.home)


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs prlimit, which only Linux has")
def test_a_full_disk_ends_a_sweep_in_one_line_and_it_goes_on_later(
    broken: dict[str, Future[Broken]], finish: Callable[[Path], None]
) -> None:
    full = broken["full"].result()
    assert full.code == 7, full.err
    (line,) = error_lines(full.err)
    assert "the disk is full" in line and "tunebatch sweep --resume here" in line
    assert full.whole_lines and full.litter == []
    finish(full.home)


def test_a_real_process_refuses_with_one_line_and_exit_2(tmp_path: Path) -> None:
    process = start("run", "--model", "./nowhere", cwd=tmp_path)
    out, err = process.communicate(timeout=PATIENCE_S)
    assert process.returncode == 2
    (line,) = error_lines(err)
    assert line.startswith("error: ./nowhere: no such folder; give a local path, a hub id (owner/name), ")
    assert out == "" and list(tmp_path.iterdir()) == []


MODELS = {
    "encoder-decoder": (transformers.T5Config(), "t5 is an encoder-decoder"),
    "recurrent": (transformers.MambaConfig(), "mamba keeps recurrent state"),
}


@pytest.mark.parametrize(("config", "told"), MODELS.values(), ids=MODELS.keys())
def test_what_cannot_be_served_is_refused_by_name_before_its_weights_are_looked_for(
    config: transformers.PretrainedConfig, told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config.save_pretrained(tmp_path / "model")
    assert run_command(["run", "--model", str(tmp_path / "model"), "-o", str(tmp_path / "out")]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert line.startswith(f"error: model: {told}")
    assert not (tmp_path / "out").exists()


def test_no_gpu_where_one_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    assert run_command(["sweep", "--device", "cuda", "-o", str(tmp_path / "out")]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert "torch finds no CUDA device here; use --device cpu" in line


def test_a_prompt_longer_than_the_context_of_the_real_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = tmp_path / "long.toml"
    profile.write_text(PROFILE.replace('"uniform:4-8"', "5000\nclip = false"))
    assert run_command(["sweep", "-p", str(profile), "-o", str(tmp_path / "out")]) == 2
    (line,) = error_lines(capsys.readouterr().err)
    assert "5000 prompt + " in line and "exceed the context of 2048" in line
    assert not (tmp_path / "out").exists()
