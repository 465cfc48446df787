"""Our own trace format: one JSON object a line.

    {"arrival_s": 0.25, "prompt_tokens": 120, "output_tokens": 40}
    {"arrival_s": 0.31, "prompt": [17, 4, 99], "max_tokens": 64, "temperature": 0.8, "seed": 3}

A line has an arrival (``arrival_s``, or ``timestamp_ms``), a prompt (``prompt``: token ids, or
``prompt_tokens``: a count, or ``text``) and an output length (``output_tokens``, or ``max_tokens``);
and, if it wants to, ``cancel_at_s`` on the scale of the arrivals, ``temperature``, ``top_p``,
``top_k``, ``seed`` (by default the number of the line, so that equal prompts differ) and ``ignore_eos``.
Other keys are refused.
"""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from tunebatch.engine.request import Sampling
from tunebatch.workload.traces.row import NO_ARRIVALS, ReadOptions, TraceError, TraceRow, open_bytes

_ARRIVAL = ("arrival_s", "timestamp_ms")
_PROMPT = ("prompt", "prompt_tokens", "text")
_OUTPUT = ("output_tokens", "max_tokens")
_SAMPLING = ("temperature", "top_p", "top_k", "seed")
_KEYS = (*_ARRIVAL, *_PROMPT, *_OUTPUT, "cancel_at_s", *_SAMPLING, "ignore_eos")
# Any such integer is a finite float and fits into the 64 bits that others give it.
LARGEST = 2**63 - 1


def read_jsonl(path: Path, options: ReadOptions) -> Iterator[TraceRow]:
    """The requests of a file; empty lines are passed over.

    Raises:
        TraceError: A line that is no object, an unknown or missing key, or an impossible value.
    """
    with open_bytes(path) as lines:
        for number, raw in enumerate(lines, 1):
            if raw.strip():
                yield _Line(path, number, raw).row(options)


class _Line:
    """One object and where it stands, for the messages."""

    def __init__(self, path: Path, number: int, raw: bytes) -> None:
        self._path = path
        self._number = number
        try:
            values = json.loads(raw.decode("utf-8-sig"))
        except (ValueError, RecursionError) as error:
            self._refuse(f"not JSON: {error}", "one JSON object a line")
        if not isinstance(values, dict):
            self._refuse(f"a JSON {type(values).__name__}", "one JSON object a line")
        self._values: dict[str, Any] = values

    def row(self, options: ReadOptions) -> TraceRow:
        for key in self._values:
            if key not in _KEYS:
                near = difflib.get_close_matches(key, _KEYS, 1)
                self._refuse(f"unknown key {key!r}", repr(near[0]) if near else f"one of {', '.join(_KEYS)}")
        arrival_s = self._arrival_s(options.need_arrivals)
        prompt = self._prompt(options)
        return TraceRow(
            line=self._number,
            arrival_s=arrival_s if options.need_arrivals else None,
            prompt_tokens=self._whole("prompt_tokens", 1) if prompt is None else len(prompt),
            output_tokens=self._whole(self._one_of(_OUTPUT), 1),
            prompt=prompt,
            patience_s=self._patience_s(arrival_s),
            sampling=self._sampling(),
            ignore_eos=self._flag("ignore_eos"),
        )

    def _arrival_s(self, needed: bool) -> float | None:
        given = [key for key in _ARRIVAL if key in self._values]
        if not given and not needed:
            return None
        if not given:
            self._refuse(f"no {_ARRIVAL[0]!r}", NO_ARRIVALS)
        key = self._one_of(_ARRIVAL)
        return self._number_of(key, 0.0) / (1.0 if key == "arrival_s" else 1000.0)

    def _patience_s(self, arrival_s: float | None) -> float | None:
        if "cancel_at_s" not in self._values:
            return None
        cancel_at_s = self._number_of("cancel_at_s", 0.0)
        if arrival_s is None:
            self._refuse("'cancel_at_s' without an arrival", "'arrival_s' as well")
        if cancel_at_s < arrival_s:
            self._refuse(f"cancel_at_s is {cancel_at_s:g}", f"no time before the arrival at {arrival_s:g}")
        return cancel_at_s - arrival_s

    def _prompt(self, options: ReadOptions) -> tuple[int, ...] | None:
        key = self._one_of(_PROMPT)
        value = self._values[key]
        if key == "prompt_tokens":
            return None
        if key == "text":
            if not isinstance(value, str) or not value:
                self._refuse(f"text is {_short(value)}", "a string that is not empty")
            if options.tokenize is None:
                self._refuse("a text prompt, but no tokenizer", "'prompt' (token ids) or 'prompt_tokens'")
            try:
                value = list(options.tokenize(value))
            except ValueError as error:
                self._refuse(f"a text prompt, but {error}", "'prompt' (token ids) or 'prompt_tokens'")
        if isinstance(value, str):
            self._refuse(f"prompt is {_short(value)}", "token ids; a prompt in words is 'text'")
        if not (
            isinstance(value, list)
            and value
            and all(_is_whole(token) and 0 <= token <= LARGEST for token in value)
        ):
            self._refuse(f"{key} is {_short(value)}", "a list of token ids that is not empty")
        return tuple(value)

    def _sampling(self) -> Sampling | None:
        if not any(key in self._values for key in _SAMPLING):
            return None
        top_p = self._number_of("top_p", 0.0) if "top_p" in self._values else 1.0
        if not 0 < top_p <= 1:
            self._refuse(f"top_p is {top_p:g}", "above 0 and at most 1")
        return Sampling(
            temperature=self._number_of("temperature", 0.0) if "temperature" in self._values else 0.0,
            top_p=top_p,
            top_k=self._whole("top_k", 0) if "top_k" in self._values else 0,
            seed=self._whole("seed", 0) if "seed" in self._values else self._number,
        )

    def _flag(self, key: str) -> bool | None:
        value = self._values.get(key)
        if key in self._values and not isinstance(value, bool):
            self._refuse(f"{key} is {_short(value)}", "true or false")
        return value

    def _one_of(self, keys: tuple[str, ...]) -> str:
        given = [key for key in keys if key in self._values]
        if len(given) != 1:
            problem = f"both {given[0]!r} and {given[1]!r}" if given else f"no {keys[0]!r}"
            self._refuse(problem, f"one of {', '.join(keys)}")
        return given[0]

    def _number_of(self, key: str, low: float) -> float:
        value = self._values[key]
        if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= LARGEST:
            self._refuse(f"{key} is {_short(value)}", f"a number, {low:g} or more")
        return float(value)

    def _whole(self, key: str, low: int) -> int:
        value = self._values[key]
        if not (_is_whole(value) and low <= value <= LARGEST):
            self._refuse(f"{key} is {_short(value)}", f"a whole number, {low} or more")
        return int(value)

    def _refuse(self, problem: str, expected: str) -> NoReturn:
        raise TraceError(self._path, self._number, problem, expected)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _short(value: object) -> str:
    text = json.dumps(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
