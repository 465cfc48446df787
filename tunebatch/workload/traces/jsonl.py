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
from collections.abc import Iterator
from pathlib import Path

from tunebatch.engine.request import Sampling
from tunebatch.workload.traces.json_line import JsonLine, read_lines, shown, wholes
from tunebatch.workload.traces.row import NoArrivalsError, ReadOptions, TraceRow

_ARRIVAL = ("arrival_s", "timestamp_ms")
_PROMPT = ("prompt", "prompt_tokens", "text")
_OUTPUT = ("output_tokens", "max_tokens")
_SAMPLING = ("temperature", "top_p", "top_k", "seed")
_KEYS = (*_ARRIVAL, *_PROMPT, *_OUTPUT, "cancel_at_s", *_SAMPLING, "ignore_eos")


def read_jsonl(path: Path, options: ReadOptions) -> Iterator[TraceRow]:
    """The requests of a file; empty lines are passed over.

    Raises:
        TraceError: A line that is no object, an unknown or missing key, or an impossible value.
    """
    for line in read_lines(path):
        yield _Request(line).row(options)


class _Request:
    """What one line asks for."""

    def __init__(self, line: JsonLine) -> None:
        self._line = line
        self._values = line.values
        self._number_of, self._whole, self._refuse = line.number_of, line.whole, line.refuse

    def row(self, options: ReadOptions) -> TraceRow:
        for key in self._values:
            if key not in _KEYS:
                near = difflib.get_close_matches(key, _KEYS, 1)
                self._refuse(f"unknown key {key!r}", repr(near[0]) if near else f"one of {', '.join(_KEYS)}")
        arrival_s = self._arrival_s(options.need_arrivals)
        prompt = self._prompt(options)
        return TraceRow(
            line=self._line.number,
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
            raise NoArrivalsError(self._line.path, self._line.number, f"no {_ARRIVAL[0]!r}")
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
                self._refuse(f"text is {shown(value)}", "a string that is not empty")
            if options.tokenize is None:
                self._refuse("a text prompt, but no tokenizer", "'prompt' (token ids) or 'prompt_tokens'")
            try:
                value = list(options.tokenize(value))
            except ValueError as error:
                self._refuse(f"a text prompt, but {error}", "'prompt' (token ids) or 'prompt_tokens'")
        if isinstance(value, str):
            self._refuse(f"prompt is {shown(value)}", "token ids; a prompt in words is 'text'")
        token_ids = wholes(value)
        if token_ids is None:
            self._refuse(f"{key} is {shown(value)}", "a list of token ids that is not empty")
        return token_ids

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
            seed=self._whole("seed", 0) if "seed" in self._values else self._line.number,
        )

    def _flag(self, key: str) -> bool | None:
        value = self._values.get(key)
        if key in self._values and not isinstance(value, bool):
            self._refuse(f"{key} is {shown(value)}", "true or false")
        return value

    def _one_of(self, keys: tuple[str, ...]) -> str:
        given = [key for key in keys if key in self._values]
        if len(given) != 1:
            problem = f"both {given[0]!r} and {given[1]!r}" if given else f"no {keys[0]!r}"
            self._refuse(problem, f"one of {', '.join(keys)}")
        return given[0]
