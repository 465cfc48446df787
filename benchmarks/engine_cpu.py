"""Our engine against other ways of serving the same requests on a CPU, taking turns in one run.

    python benchmarks/engine_cpu.py --model bundled small 135m --dtype float32 bfloat16
    python benchmarks/engine_cpu.py --model tiny --peer generate_batch generate vllm --vllm-python PATH

The work is 64 requests that are all there at once: prompts of 128 random tokens, outputs of a seeded
uniform 16 to 256 tokens with EOS ignored. A figure is output tokens per second over the whole run, prefill
included; loading, compiling and one warm-up of every side are not. Sides take turns, round by round, on
their own copies of one model, and each must make exactly the tokens asked for. Shown are medians, with the
least and the most of the rounds. "Same tokens" counts the requests whose output is ours to the last token
(in bfloat16 near ties may fall otherwise); "others' cores" is the most work that anybody else did during
a turn: well above 0, a round was disturbed. Only the ratios are to be quoted: they come from one run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

import transformers
from peers.generate import generate
from peers.generate_batch import NoContinuousBatchingError, generate_batch
from peers.ours import ours
from peers.vllm_cpu import NoVllmError, find_vllm, vllm
from peers.work import MODELS, Case, Side, Turn, save, traffic, warm_up_requests

from tunebatch.engine.request import Request
from tunebatch.measure.atomic import write_all
from tunebatch.measure.environment import environment

SCHEMA = "tunebatch.engine_cpu.v1"
PEERS = ("generate_batch", "generate", "vllm")


def main() -> int:
    # Python would end on it at once, and leave folders and servers behind.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    options = _options()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    report: dict[str, Any] = {"schema": SCHEMA, "environment": environment(), "cases": []}
    try:
        if "vllm" in options.peer:
            options.vllm_python = find_vllm(options.vllm_python)
            report["vllm"] = {
                "versions": options.vllm_python.versions,
                "preloaded": [Path(library).name for library in options.vllm_python.preloaded],
            }
        _print_machine(report)
        for model in options.model:
            for dtype in options.dtype:
                with tempfile.TemporaryDirectory(prefix="engine-cpu-") as folder:
                    parameters, vocabulary = save(model, dtype, Path(folder))
                    requests = traffic(vocabulary, options.requests)
                    for batch in options.batch:
                        case = Case(Path(folder), dtype, batch, requests)
                        turns = _take_turns(case, options)
                        result = {"model": model, "parameters": parameters} | _result(case, turns)
                        _print_case(result)
                        report["cases"].append(result)
                        if options.json:
                            _write(report, options.json)
    except (NoVllmError, NoContinuousBatchingError) as error:
        print(f"engine_cpu: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("engine_cpu: interrupted; the cases above are complete", file=sys.stderr)
        return 130
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--model", nargs="+", choices=MODELS, default=["bundled"])
    parser.add_argument("--dtype", nargs="+", choices=("float32", "bfloat16"), default=["float32"])
    parser.add_argument("--batch", nargs="+", type=_positive, default=[8, 32], help="running sequences")
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=["generate_batch", "generate"])
    parser.add_argument("--rounds", type=_positive, default=3)
    parser.add_argument("--requests", type=_positive, default=64, help="fewer for a quick look")
    parser.add_argument("--json", type=Path, metavar="PATH", help="write every turn's figures there too")
    parser.add_argument(
        "--vllm-python", metavar="PATH", help="interpreter that has vLLM's CPU build; default: this one"
    )
    options = parser.parse_args()
    if options.json and not options.json.parent.is_dir():
        parser.error(f"--json {options.json}: there is no folder {options.json.parent}")
    return options


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a number of at least 1")
    return number


def _take_turns(case: Case, options: argparse.Namespace) -> dict[str, list[Turn]]:
    """Each side loads and warms up; then all take turns in the same order, round by round."""
    with contextlib.ExitStack() as stack:
        sides: dict[str, Side] = {"ours": ours(case)}
        if "generate_batch" in options.peer:
            sides["generate_batch"] = generate_batch(case)
        if "generate" in options.peer:
            sides["generate"] = generate(case)
        if "vllm" in options.peer:
            sides["vllm"] = stack.enter_context(vllm(case, options.vllm_python))
        for name, side in sides.items():
            _serve(name, side, warm_up_requests(case))
        turns: dict[str, list[Turn]] = {name: [] for name in sides}
        for _ in range(options.rounds):
            for name, side in sides.items():
                turns[name].append(_serve(name, side, case.requests))
    return turns


def _serve(name: str, side: Side, requests: list[Request]) -> Turn:
    """A side's turn, refused when it did not generate exactly what was asked for."""
    turn = side(requests)
    for request, output in zip(requests, turn.outputs, strict=True):
        if len(output) != request.max_tokens:
            raise SystemExit(
                f"engine_cpu: {name} generated {len(output)} tokens for request {request.id}, "
                f"which asked for {request.max_tokens}; nothing can be compared"
            )
    return turn


def _result(case: Case, turns: dict[str, list[Turn]]) -> dict[str, Any]:
    """Rates of every side, and ours over each peer's round by round."""
    num_tokens = sum(request.max_tokens for request in case.requests)
    rates = {name: [num_tokens / turn.seconds for turn in own] for name, own in turns.items()}
    sides: dict[str, Any] = {}
    for name, own in turns.items():
        sides[name] = {
            "output_throughput": statistics.median(rates[name]),
            "rounds": rates[name],
            "foreign_cores": [turn.foreign_cores for turn in own],
        }
        if name == "ours":
            continue
        ratios = [a / b for a, b in zip(rates["ours"], rates[name], strict=True)]
        same = sum(a == b for a, b in zip(turns["ours"][0].outputs, own[0].outputs, strict=True))
        sides[name] |= {
            "ours_over_this": statistics.median(ratios),
            "ours_over_this_rounds": ratios,
            "requests_with_our_tokens": same,
        }
    return {
        "dtype": case.dtype,
        "batch": case.batch,
        "num_requests": len(case.requests),
        "output_tokens": num_tokens,
        "sides": sides,
    }


def _print_machine(report: dict[str, Any]) -> None:
    facts = report["environment"]
    versions = ", ".join(f"{name} {facts[name]}" for name in ("torch", "transformers", "numba"))
    print(f"{facts['cpu']}, {facts['cores']} cores; {versions}")
    if "vllm" in report:
        versions = ", ".join(f"{name} {version}" for name, version in report["vllm"]["versions"].items())
        preloaded = ", ".join(report["vllm"]["preloaded"]) or "nothing"
        print(f"vLLM's environment: {versions}; preloaded: {preloaded}")


def _print_case(result: dict[str, Any]) -> None:
    first = result["sides"]["ours"]
    print(
        f"\n{result['model']} ({result['parameters'] / 1e6:.1f} M parameters) {result['dtype']} "
        f"batch {result['batch']}: {result['num_requests']} requests, {result['output_tokens']:,} output "
        f"tokens, {len(first['rounds'])} rounds"
    )
    print(f"  {'':<15}{'tok/s [min, max]':<25}{'ours over it':<22}{'same tokens':<13}others' cores")
    for name, side in result["sides"].items():
        rate = f"{side['output_throughput']:,.0f} {_range(side['rounds'], ',.0f')}"
        ratio = same = ""
        if name != "ours":
            ratio = f"{side['ours_over_this']:.2f} {_range(side['ours_over_this_rounds'], '.2f')}"
            same = f"{side['requests_with_our_tokens']} of {result['num_requests']}"
        foreign = [cores for cores in side["foreign_cores"] if cores is not None]
        shown = f"{max(foreign):.2f}" if foreign else "n/a"
        print(f"  {name:<15}{rate:<25}{ratio:<22}{same:<13}{shown}", flush=True)


def _range(values: list[float], spec: str) -> str:
    return f"[{min(values):{spec}}, {max(values):{spec}}]"


def _write(report: dict[str, Any], path: Path) -> None:
    def write(file: TextIO) -> None:
        json.dump(report, file, indent=1)
        file.write("\n")

    write_all(path.parent, {path.name: write})


if __name__ == "__main__":
    sys.exit(main())
