"""Part 6: nano-vllm's published workload, served by us and by transformers, taking turns.

Its benchmark's requests to the token: 256 prompts of 100 to 1024 ids below 10,000 and outputs of 100 to 1024
tokens, drawn with Python's random numbers of seed 0 (133,966 output tokens, of which it publishes 1,434 a
second for itself and 1,362 for vLLM on a laptop's RTX 4070). It samples at temperature 0.6; here all sides
are greedy.
"""

from __future__ import annotations

import random
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
import transformers
from claimed.claim import Band, Figure, Table
from peers.generate import generate
from peers.generate_batch import generate_batch
from peers.ours import ours
from peers.work import Case, Side, Turn, save, warm_up_requests

from on_gpu.bench import GpuBench
from on_gpu.found import Bar, Found, Part, WrongResultError
from tunebatch.engine.request import Request
from tunebatch.measure.kv_memory import KvLayout
from tunebatch.models.named_shape import named_shape

OURS, PEERS = "ours", ("generate_batch", "generate")
HIGHEST_ID = 10_000
SHORT_S, FEW = 150.0, 64  # of less time only so many of the requests are served
# Of the memory that is free, what a padded cache may take: it is copied as it grows.
PADDED_SHARE = 0.4

BARS = {
    "generate_batch": Bar("output tokens a second over transformers' `generate_batch`", Band(low=5.0)),
    "generate": Bar("output tokens a second over padded `generate`", Band(low=3.0)),
}


def measure(bench: GpuBench) -> Found:
    """Raises:
    WrongResultError: A side did not make the tokens that were asked for.
    """
    bench.release()
    setting = bench.setting
    shape = named_shape(setting.small)
    assert shape is not None
    asked = requests(setting.requests, setting.offline_lengths, min(HIGHEST_ID, shape.num_ordinary - 1))
    found = Found(setting="")
    if not setting.dry and bench.budget.left_s() < SHORT_S and len(asked) > FEW:
        found.not_measured.append(f"{len(asked) - FEW} of the {len(asked)} requests: too little time")
        asked = asked[:FEW]
    with tempfile.TemporaryDirectory(prefix="on-gpu-") as folder:
        transformers.logging.disable_progress_bar()
        save(setting.small, setting.dtype, Path(folder), setting.device)
        case = Case(Path(folder), setting.dtype, len(asked), asked, setting.device, setting.backend)
        turns, whys = _take_turns(bench, case)
    found.not_measured += [f"{name}: {why}" for name, why in whys.items()]
    num_tokens = sum(request.max_tokens for request in asked)
    rates = {name: [num_tokens / turn.seconds for turn in own] for name, own in turns.items()}
    ratios = {
        name: [a / b for a, b in zip(rates[OURS], rates[name], strict=False)]
        for name in PEERS
        if name in rates
    }
    for name, bar in BARS.items():
        figure = Figure(tuple(ratios[name])) if ratios.get(name) else None
        found.bars.append(bar.dict(figure, whys.get(name, "out of time")))
    found.setting = (
        f"{setting.small}, random weights, {setting.dtype}; {len(asked)} requests that are all there at "
        f"once, {num_tokens:,} output tokens, prompts and outputs of {setting.offline_lengths[0]} to "
        f"{setting.offline_lengths[1]} tokens; continuous batching of all of them, padded `generate` in "
        f"batches of {_padded_batch(bench, asked)}, both by SDPA unless transformers finds flash-attn; all "
        f"greedy; rounds: {len(rates[OURS])}"
    )
    found.tables.append(_table(rates, ratios, turns))
    found.data = {"output_tokens": num_tokens, "output_throughput": rates, "ours_over": ratios}
    return found


def requests(count: int, lengths: tuple[int, int], highest_id: int = HIGHEST_ID) -> list[Request]:
    """As nano-vllm's ``bench.py`` draws them."""
    draw = random.Random(0)
    prompts = [
        tuple(draw.randint(0, highest_id) for _ in range(draw.randint(*lengths))) for _ in range(count)
    ]
    outputs = [draw.randint(*lengths) for _ in range(count)]
    return [
        Request(i, prompt, output, ignore_eos=True)
        for i, (prompt, output) in enumerate(zip(prompts, outputs, strict=True))
    ]


def _take_turns(bench: GpuBench, case: Case) -> tuple[dict[str, list[Turn]], dict[str, str]]:
    """Every side's turns, and why others have none."""
    sides: dict[str, Side] = {}
    whys: dict[str, str] = {}
    padded = replace(case, batch=_padded_batch(bench, case.requests))
    for name, make, own in (
        (OURS, ours, case),
        ("generate_batch", generate_batch, case),
        ("generate", generate, padded),
    ):
        bench.say(f"loading and warming up: {name}")
        try:
            sides[name] = make(own)
            _serve(bench, name, sides[name], warm_up_requests(replace(own, batch=min(own.batch, 8))))
        except Exception as error:  # whatever another's code does, it costs that side alone
            if name == OURS:
                raise
            sides.pop(name, None)
            whys[name] = _why(error)
    turns: dict[str, list[Turn]] = {name: [] for name in sides}
    round_s = 0.0
    for number in range(bench.setting.rounds):
        if number and bench.budget.left_s() < round_s:
            break
        round_s = 0.0
        for name in list(sides) if number % 2 == 0 else reversed(list(sides)):
            bench.say(f"round {number + 1}: {name}")
            try:
                turns[name].append(_serve(bench, name, sides[name], case.requests))
            except Exception as error:
                if name == OURS:
                    raise
                del sides[name]
                whys[name] = f"broke off in round {number + 1}: {_why(error)}"
                continue
            round_s += turns[name][-1].seconds
    return {name: own for name, own in turns.items() if own}, whys


def _why(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _serve(bench: GpuBench, name: str, side: Side, asked: list[Request]) -> Turn:
    turn = side(asked)
    if bench.on_cuda:
        bench.release()  # what one side leaves the next may need
    for request, output in zip(asked, turn.outputs, strict=True):
        if len(output) != request.max_tokens:
            raise WrongResultError(
                f"{name} generated {len(output)} tokens for request {request.id}, which asked for "
                f"{request.max_tokens}; nothing can be compared"
            )
    return turn


def _padded_batch(bench: GpuBench, asked: list[Request]) -> int:
    """The largest power of two whose padded cache there is room for."""
    if not bench.on_cuda:
        return len(asked)
    shape = named_shape(bench.setting.small)
    assert shape is not None
    sizes = shape.sizes
    each = KvLayout(sizes.kv_heads, sizes.head_dim, sizes.windows, 2).bytes_per_token
    longest = max(len(request.prompt) for request in asked) + max(request.max_tokens for request in asked)
    total = torch.cuda.get_device_properties(0).total_memory
    batch = 1
    while 2 * batch <= len(asked) and 2 * batch * longest * each < PADDED_SHARE * total:
        batch *= 2
    return batch


def _table(
    rates: dict[str, list[float]], ratios: dict[str, list[float]], turns: dict[str, list[Turn]]
) -> Table:
    rows = []
    for name, own in rates.items():
        same = sum(a == b for a, b in zip(turns[OURS][0].outputs, turns[name][0].outputs, strict=True))
        ratio = Figure(tuple(ratios[name])).text() if name in ratios else "-"
        told = Figure(tuple(own), " tokens/s").text()
        rows.append(f"{name} | {told} | {ratio} | {same} of {len(turns[OURS][0].outputs)}")
    return Table(
        "Output tokens a second, prefill included",
        "side | rate | ours over it | requests with our tokens",
        rows,
    )


PART = Part(
    "offline", "How fast is nano-vllm's published workload served?", 330.0, measure, tuple(BARS.values())
)
