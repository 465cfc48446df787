"""Measures what is commonly said of batching, and says which of it holds on this machine.

    python benchmarks/claims.py [--only 1,5] [--rounds 2] [--out results]

All on one executor with the bundled model, after a check that all strategies give the tokens of `generate`.
Nine claims take under six minutes on two cores with nothing else running. `OUT/<machine>/claims.md` tells
verdicts and figures, `claims.json` holds every number. What was measured before Ctrl-C, or with --only, goes
to `claims-partial.md` and `.json`, so that the files of all claims stay those of one run.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

import transformers
from claimed import adaptive, batching, chunking, continuous, dynamic, heads, prefix, slots, speculation
from claimed.bench import Bench, Side
from claimed.claim import Claim, Judged
from claimed.commit import commit
from claimed.page import machine_folder, to_json_dict, to_markdown

from tunebatch.engine.strategies import STRATEGIES, strategy
from tunebatch.execute.torch.draft_model import load_draft
from tunebatch.execute.torch.load import load_executor
from tunebatch.execute.torch.same_tokens import check_same_tokens
from tunebatch.measure.atomic import write_all
from tunebatch.measure.environment import environment
from tunebatch.models import bundled_corpus
from tunebatch.workload.named import NAMED
from tunebatch.workload.prompts import CorpusPrompts

ROOT = Path(__file__).resolve().parent.parent
MODULES = (batching, continuous, dynamic, slots, chunking, speculation, prefix, heads, adaptive)
CLAIMS: dict[int, Claim] = {place: module.CLAIM for place, module in enumerate(MODULES, 1)}
CHECKED = (*STRATEGIES, "continuous+prefix", "continuous+ngram", "continuous+draft")
BEGAN = time.perf_counter()


def main(arguments: Sequence[str] | None = None) -> int:
    options = _options(arguments)
    transformers.logging.set_verbosity_error()
    judged: list[Judged] = []
    try:
        bench, facts = _begin(options.rounds)
        judged.extend(_measured(place, bench) for place in options.only)
    except KeyboardInterrupt:
        print("claims: interrupted" + "; nothing was written" * (not judged), file=sys.stderr)
        return 130
    finally:  # what was measured is kept, whatever ended it
        if judged:
            facts |= {"rounds": options.rounds, "seconds": time.perf_counter() - BEGAN}
            _write(judged, facts, options.out / machine_folder(facts, bench.executor.device.type))
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    names = "\n".join(f"  {place} {claim.name:<12} {claim.text}" for place, claim in CLAIMS.items())
    parser = argparse.ArgumentParser(
        description=__doc__,
        epilog=names,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument(
        "--only", type=chosen, default=list(CLAIMS), metavar="1,5", help="numbers or names of claims"
    )
    parser.add_argument(
        "--rounds", type=int, choices=range(1, 10), default=2, metavar="N", help="turns of each side"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "results", metavar="FOLDER")
    return parser.parse_args(arguments)


def chosen(text: str) -> list[int]:
    """Numbers of claims, each once and in order, from numbers and names."""
    places = {claim.name: place for place, claim in CLAIMS.items()} | {str(place): place for place in CLAIMS}
    for word in text.split(","):
        if word.strip() not in places:
            raise argparse.ArgumentTypeError(f"no claim {word.strip()!r}; one of {', '.join(places)}")
    return sorted({places[word.strip()] for word in text.split(",")})


def _begin(rounds: int) -> tuple[Bench, dict[str, Any]]:
    """The loaded models, after a check and a run that is not counted, and the facts of the machine."""
    _say("loading the bundled model and its draft")
    executor = load_executor("bundled")
    load_draft(executor, "bundled")
    same = check_same_tokens(executor, [strategy(name) for name in CHECKED])
    bench = Bench(executor, CorpusPrompts(bundled_corpus()), rounds, _say)
    bench.run(Side(bench.workload(NAMED["quickstart"], 64).saturated(), strategy("mixed")))
    bench.foreign_cpu_shares.clear()
    model = executor.model_info
    facts = environment() | {
        "date": f"{dt.datetime.now(dt.UTC):%Y-%m-%d %H:%M} UTC",
        "commit": commit(ROOT),
        "model": f"{model['name']}, {model['parameters'] / 1e6:.1f} M parameters, {model['dtype']}, "
        f"{model['device']}",
        "same_tokens": f"greedy tokens: {same.num_requests} requests, {same.num_tokens} tokens, equal to "
        f"`generate` under {', '.join(same.strategies)}",
    }
    return bench, facts


def _measured(place: int, bench: Bench) -> Judged:
    claim, began, first = CLAIMS[place], time.perf_counter(), len(bench.foreign_cpu_shares)
    _say(f"{place} {claim.name}: {claim.text}")
    finding = claim.measure(bench)
    shares = bench.foreign_cpu_shares[first:]
    judged = Judged(place, claim, finding, time.perf_counter() - began, max(shares, default=None))
    figures = "; ".join(f"{check.figure} {judged.figure(check).text()}" for check in claim.checks)
    _say(f"{place} {claim.name}: {judged.verdict.upper()} ({figures})")
    return judged


def _write(judged: Sequence[Judged], facts: dict[str, Any], folder: Path) -> None:
    measured = [one.number for one in judged]
    not_run = [f"{place}. {claim.text}" for place, claim in CLAIMS.items() if place not in measured]
    name = "claims-partial" if not_run else "claims"
    data = to_json_dict(judged, not_run, facts)

    def write_json(file: TextIO) -> None:
        json.dump(data, file, indent=1, allow_nan=False)
        file.write("\n")

    def write_page(file: TextIO) -> None:
        file.write(to_markdown(judged, not_run, facts))

    folder.mkdir(parents=True, exist_ok=True)
    write_all(folder, {f"{name}.json": write_json, f"{name}.md": write_page})
    print("\n".join(f"{one.number} {one.claim.name:<12} {one.verdict}" for one in judged))
    print(f"{'in part: ' if not_run else ''}{folder / name}.md")


def _say(text: str) -> None:
    print(f"{time.perf_counter() - BEGAN:4.0f} s  {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
