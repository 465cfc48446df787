"""ServeGen clients: rates and lengths of production clients in windows of time, to draw requests from.

Source: repository alibaba/ServeGen, Apache-2.0 (arXiv:2505.09999). A client is two files.
``chunk-N-trace.csv`` has no header: window start (s), requests a second, CV of the gaps, the law fitted to
them (``Gamma``, ``Weibull`` or nothing), its shape and its scale. ``chunk-N-dataset.json`` maps the starts of
longer windows to histograms, each a text that holds a Python literal ``{tokens: probability}``, ``{}``
without data.

The fitted mean is not always one over the rate, so of the law only the shape is taken, and the mean from the
rate. Prompt and output lengths are drawn apart from each other, as the histograms are.
"""

from __future__ import annotations

import ast
import heapq
import io
import json
import math
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from pathlib import Path

import numpy as np

from tunebatch.workload.traces.row import ReadOptions, TraceError, TraceRow, open_bytes

_TRACE, _DATASET = "-trace.csv", "-dataset.json"
_FIELDS = "window start, rate, CV, law, shape, scale"
_LAST_WINDOW_S = 600.0
_INPUT, _OUTPUT = "input_tokens", "output_tokens"


def read_servegen(path: Path, options: ReadOptions) -> Iterator[TraceRow]:
    """Requests of one client (its ``-trace.csv``), or of all clients in a folder, in order of arrival.

    A row's line is that of its window.

    Raises:
        TraceError: No client there, no histograms beside it, or a broken window or histogram.
    """
    clients = sorted(path.glob(f"*{_TRACE}")) if path.is_dir() else [path]
    if not clients:
        raise TraceError(path, None, "no client in this folder", f"files named *{_TRACE}")
    drawn = [
        _requests(client, np.random.default_rng([options.seed, number]))
        for number, client in enumerate(clients)
    ]
    for row in heapq.merge(*drawn, key=lambda row: row.arrival_s or 0.0):
        yield row if options.need_arrivals else replace(row, arrival_s=None)


@dataclass(frozen=True, slots=True)
class _Window:
    line: int
    start_s: float
    rate_per_s: float
    law: str
    shape: float


@dataclass(frozen=True, slots=True)
class _Histogram:
    tokens: list[int]
    cumulated: list[float]

    def draw(self, rng: np.random.Generator) -> int:
        place = bisect_right(self.cumulated, rng.random() * self.cumulated[-1])
        return self.tokens[min(place, len(self.tokens) - 1)]


def _requests(path: Path, rng: np.random.Generator) -> Iterator[TraceRow]:
    windows = _windows(path)
    prompts, outputs = _histograms(path, _INPUT), _histograms(path, _OUTPUT)
    ends_s = [window.start_s for window in windows[1:]]
    ends_s += [window.start_s + _LAST_WINDOW_S for window in windows[-1:]]
    for window, end_s in zip(windows, ends_s, strict=True):
        if not window.rate_per_s:
            continue
        prompt, output = _nearest(prompts, window.start_s), _nearest(outputs, window.start_s)
        arrival_s = window.start_s + _gap_s(window, rng)
        while arrival_s < end_s:
            yield TraceRow(window.line, arrival_s, prompt.draw(rng), output.draw(rng))
            arrival_s += _gap_s(window, rng)


def _gap_s(window: _Window, rng: np.random.Generator) -> float:
    if window.law == "Gamma":
        return float(rng.standard_gamma(window.shape)) / (window.shape * window.rate_per_s)
    if window.law == "Weibull":
        return float(rng.weibull(window.shape)) / (math.gamma(1 + 1 / window.shape) * window.rate_per_s)
    return float(rng.standard_exponential()) / window.rate_per_s


def _windows(path: Path) -> list[_Window]:
    windows: list[_Window] = []
    with open_bytes(path) as raw, io.TextIOWrapper(raw, "utf-8-sig", "replace") as lines:
        for line, text in enumerate(lines, 1):
            if text.strip():
                windows.append(_window(path, line, [field.strip() for field in text.split(",")]))
    for before, after in pairwise(windows):
        if after.start_s <= before.start_s:
            raise TraceError(path, after.line, f"the window starts at {after.start_s:g}", "ascending starts")
    return windows


def _window(path: Path, line: int, fields: list[str]) -> _Window:
    if len(fields) != 6:
        raise TraceError(path, line, f"{len(fields)} fields", f"6: {_FIELDS}")
    numbers = []
    for text in (fields[0], fields[1], fields[4] or "0"):
        try:
            numbers.append(float(text))
        except ValueError:
            numbers.append(math.nan)
        if not 0 <= numbers[-1] < math.inf:
            raise TraceError(path, line, f"{text!r}", f"a number, 0 or more, in {_FIELDS}")
    start_s, rate_per_s, shape = numbers
    law = fields[3]
    if law not in ("Gamma", "Weibull", ""):
        raise TraceError(path, line, f"law {law!r}", "Gamma, Weibull or nothing")
    # A Weibull law of a smaller shape has no mean that a float holds.
    if rate_per_s and law and shape < 0.01:
        raise TraceError(path, line, f"shape {shape:g} of a {law} law", "0.01 or more")
    return _Window(line, start_s, rate_per_s, law, shape)


def _histograms(path: Path, key: str) -> dict[float, _Histogram]:
    """Those with data, by the start of their windows."""
    beside = path.with_name(path.name.removesuffix(_TRACE) + _DATASET)
    if not path.name.endswith(_TRACE) or not beside.is_file():
        raise TraceError(path, None, f"no {beside.name} beside it", f"a client's *{_TRACE} and *{_DATASET}")
    place = ""
    try:
        windows = json.loads(beside.read_text(encoding="utf-8"))
        read: dict[float, _Histogram] = {}
        for start, kinds in windows.items():
            place = f" of window {start!r}"
            read[float(start)] = _histogram(kinds[key])
    except (OSError, ValueError, SyntaxError, KeyError, TypeError, AttributeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise TraceError(
            beside,
            None,
            f"no histograms{place}: {said}",
            f"{{window start: {{{key!r}: '{{tokens: probability}}'}}}}",
        ) from None
    found = {start: histogram for start, histogram in read.items() if histogram.tokens}
    if not found:
        raise TraceError(beside, None, f"no data in any histogram of {key}", "one at least")
    return found


def _histogram(text: str) -> _Histogram:
    values = ast.literal_eval(text)
    pairs = [(int(tokens), float(share)) for tokens, share in values.items() if share]
    if any(tokens < 0 or not 0 < share < math.inf for tokens, share in pairs):
        raise ValueError("a length or a probability below 0")
    return _Histogram([tokens for tokens, _ in pairs], list(accumulate(share for _, share in pairs)))


def _nearest(histograms: dict[float, _Histogram], start_s: float) -> _Histogram:
    """That of the last window that has begun, or of the next one, if that has no data."""
    begun = [start for start in histograms if start <= start_s]
    return histograms[max(begun) if begun else min(histograms)]
