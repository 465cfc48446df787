"""Proves and measures the engine on a GPU, in one command.

    python benchmarks/gpu.py [--only decode,prefill] [--budget 540] [--out results]
    python benchmarks/gpu.py --dry

Needs torch, Triton, transformers, numpy, pandas, rich and typer; NVML's figures need nvidia-ml-py too, and
the last part optuna and pydantic. What is computed is checked first, whatever is asked for: if it is wrong,
nothing is timed. `OUT/<gpu>/gpu.md` and `gpu.json` are written after each part, with `steps-<part>.csv`, the
plan and duration of every step. A part that does not run keeps what an earlier run on such a GPU wrote of it.
--dry runs all of it through on a CPU with tiny models, and writes to a folder of its own.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime as dt
import json
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

if "--dry" in sys.argv[1:]:  # read when kernels are defined, which importing does
    os.environ.setdefault("TRITON_INTERPRET", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing is downloaded
# What is measured is the engine beside this script, which need not be installed.
sys.path.insert(1, str(Path(__file__).resolve().parent.parent))

import torch
import transformers
from claimed.commit import commit
from claimed.page import machine_folder
from on_gpu import attention, busy, ceilings, correctness, decode, host, offline, prefill, strategies, sweep
from on_gpu.bench import GpuBench
from on_gpu.budget import Budget, allowed_s
from on_gpu.found import Part, WrongResultError
from on_gpu.page import SCHEMA, bars_of, not_measured, to_markdown
from on_gpu.setting import DRY, ON_GPU, Setting
from on_gpu.step_log import StepRows

from tunebatch.measure.atomic import write_all
from tunebatch.measure.environment import environment

ROOT = Path(__file__).resolve().parent.parent
MODULES = (
    correctness,
    ceilings,
    attention,
    decode,
    prefill,
    offline,
    strategies,
    host,
    busy,
    sweep,
)
PARTS: dict[str, Part] = {module.PART.name: module.PART for module in MODULES}
TEXTS = {name: part.text for name, part in PARTS.items()}
ALWAYS = ("correctness", "ceilings")
DRY_S = 15.0  # of a part of a dry run
BEGAN = time.perf_counter()


def main(arguments: Sequence[str] | None = None, setting: Setting | None = None) -> int:
    """Args:
    setting: Instead of the one that --dry chooses.
    """
    options = _options(arguments)
    chosen = setting or (DRY if options.dry else ON_GPU)
    if not chosen.dry and not torch.cuda.is_available():
        print("gpu: torch finds no CUDA device here; --dry runs everything through on a CPU", file=sys.stderr)
        return 2
    transformers.logging.set_verbosity_error()
    facts = environment() | {"triton": _version("triton"), "pandas": _version("pandas")}
    folder = _folder(options, chosen, facts)
    data = _earlier(folder, chosen, facts)
    bench = GpuBench(chosen, folder, _say)
    try:
        return _measure(bench, options, data, folder)
    except KeyboardInterrupt:
        print(f"gpu: interrupted; the parts above are in {folder}", file=sys.stderr)
        return 130


def _measure(bench: GpuBench, options: argparse.Namespace, data: dict[str, Any], folder: Path) -> int:
    """Run the parts, each written when it has ended; 1 where results are wrong, or a part broke off."""
    whole = Budget(options.budget) if options.budget is not None else None
    failed = 0
    for place, name in enumerate(options.only):
        part = PARTS[name]
        wanted_s = {one: DRY_S if bench.setting.dry else PARTS[one].budget_s for one in options.only[place:]}
        left_s = None if whole is None else whole.left_s()
        bench.budget = Budget(allowed_s(wanted_s[name], sum(wanted_s.values()), left_s))
        bench.steps = StepRows()
        _say(f"{name}: {part.text}")
        wrong, result = _run(part, bench)
        failed += bool(result["failed"])
        data["parts"][name] = result
        _write(data, bench.steps, name, folder)
        if wrong:
            print(f"gpu: {name}: {result['failed']}; nothing is timed", file=sys.stderr)
            return 1
    _summary(data, folder)
    return int(failed > 0)


def _run(part: Part, bench: GpuBench) -> tuple[bool, dict[str, Any]]:
    """Whether results are wrong; and what was found, or why it broke off: the other parts still count."""
    began_s = time.perf_counter()
    wrong, why = False, ""
    found: dict[str, Any] = {"setting": "", "bars": [], "tables": [], "not_measured": [], "data": {}}
    try:
        found = part.measure(bench).dict()
    except WrongResultError as error:
        wrong, why = True, str(error)
    except Exception as error:  # whatever a device or a library does, it costs one part
        traceback.print_exc()
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        bench.release()
    if why:
        found["bars"] = [bar.dict(None, "it broke off") for bar in part.bars]
    return wrong, found | {
        "failed": why,
        "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit(ROOT),
        "seconds": round(time.perf_counter() - began_s, 1),
        "ceilings": None if bench.ceilings is None else dataclasses.asdict(bench.ceilings),
    }


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = "\n".join(f"  {name:<12} {part.budget_s:4.0f} s  {part.text}" for name, part in PARTS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=f"parts, and what each takes:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--only",
        type=chosen_parts,
        default=list(PARTS),
        metavar="NAMES",
        help="parts, with commas between them",
    )
    parser.add_argument(
        "--budget",
        type=_seconds,
        metavar="SECONDS",
        help="for all parts together; with less, less is measured",
    )
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="[results; in a dry run a temporary one]")
    parser.add_argument(
        "--dry", action="store_true", help="run everything through on a CPU, in about a minute"
    )
    return parser.parse_args(arguments)


def chosen_parts(text: str) -> list[str]:
    """Names of parts, each once and in order, with those that always run."""
    names = [word.strip() for word in text.split(",")]
    for name in names:
        if name not in PARTS:
            raise argparse.ArgumentTypeError(f"no part {name!r}; one of {', '.join(PARTS)}")
    return [name for name in PARTS if name in names or name in ALWAYS]


def _seconds(text: str) -> float:
    seconds = float(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds above 0")
    return seconds


def _folder(options: argparse.Namespace, setting: Setting, facts: dict[str, Any]) -> Path:
    if setting.dry:
        folder = options.out / "dry" if options.out else Path(tempfile.mkdtemp(prefix="tunebatch-dry-"))
    else:
        folder = (options.out or ROOT / "results") / machine_folder(_named(facts), "cuda")
    folder.mkdir(parents=True, exist_ok=True)
    return Path(folder)


def _named(facts: dict[str, Any]) -> dict[str, Any]:
    """Without NVML torch knows the GPU's name."""
    return facts | {"gpu": facts["gpu"] or torch.cuda.get_device_name()}


def _earlier(folder: Path, setting: Setting, facts: dict[str, Any]) -> dict[str, Any]:
    """What an earlier run on such a device left in the folder, to be gone on with."""
    facts = facts if setting.dry else _named(facts)
    parts: dict[str, Any] = {}
    file = folder / "gpu.json"
    if file.is_file():
        earlier = json.loads(file.read_text(encoding="utf-8"))
        same = earlier["environment"].get("gpu") == facts["gpu"] and earlier["dry"] == setting.dry
        if earlier["schema"] == SCHEMA and same:
            parts = earlier["parts"]
    return {"schema": SCHEMA, "dry": setting.dry, "environment": facts, "parts": parts}


def _write(data: dict[str, Any], steps: StepRows, name: str, folder: Path) -> None:
    data["parts"] = {one: data["parts"][one] for one in PARTS if one in data["parts"]}
    data["bars_not_run"] = [
        bar.dict(None, "not run")
        for part in PARTS.values()
        if part.name not in data["parts"]
        for bar in part.bars
    ]

    def write_json(file: TextIO) -> None:
        json.dump(data, file, indent=1)
        file.write("\n")

    def write_page(file: TextIO) -> None:
        file.write(to_markdown(data, TEXTS))

    files = {f"steps-{name}.csv": steps.write} if steps.rows else {}
    write_all(folder, {**files, "gpu.json": write_json, "gpu.md": write_page})


def _summary(data: dict[str, Any], folder: Path) -> None:
    for bar in bars_of(data):
        print(f"{bar['verdict']:<12} {bar['bar']}: {bar['measured']} (wanted: {bar['wanted']})")
    print(f"{len(not_measured(data, TEXTS))} things were not measured; all of it: {folder / 'gpu.md'}")


def _version(library: str) -> str | None:
    try:
        return metadata.version(library)
    except metadata.PackageNotFoundError:
        return None


def _say(text: str) -> None:
    print(f"{time.perf_counter() - BEGAN:4.0f} s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
