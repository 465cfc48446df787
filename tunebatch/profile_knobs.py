"""The ranges of knobs that a search keeps to, as people write them: ``max_batch_size = "4-128"``."""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Iterable, Mapping
from typing import Any

from tunebatch.engine.features import FEATURES
from tunebatch.engine.knobs import AUTO, MAX_BATCH_SIZE, MIN_BATCH_SIZE, Knob
from tunebatch.engine.presets import PRESETS
from tunebatch.engine.strategies import STRATEGIES, kind_of, knobs_of
from tunebatch.measure.limits import format_duration, parse_duration

Ranges = dict[str, tuple[float, float]]


def parse_ranges(value: Any) -> Ranges:
    """The lowest and highest value of each knob, ends included; of ``auto`` both are 0.

    Args:
        value: A table, in which a knob is ``"LOW-HIGH"``, or one value, which pins it; or a list or a text
            with commas of ``KNOB=LOW-HIGH``. Seconds may have a unit: ``"10ms-0.5s"``.

    Raises:
        ValueError: One line with the knob, its value and the nearest valid one.
    """
    if isinstance(value, str):
        value = [text for text in value.split(",") if text.strip()]
    if isinstance(value, list):
        value = _table(value)
    if not isinstance(value, dict):
        raise ValueError(f"{value!r} is no table; write it like max_batch_size = '4-128'")
    return {name: _range(name, given) for name, given in value.items()}


def range_text(name: str, low: float, high: float) -> str:
    """As ``parse_ranges`` reads it: ``4-128``, ``16`` or ``auto``."""
    if low == high == 0 and any(knob.auto for knob in knobs_named(name)):
        return AUTO
    texts = [format_duration(end) if name.endswith("_s") and end else f"{end:g}" for end in (low, high)]
    return texts[0] if low == high else "-".join(texts)


def unknown_knob(name: str) -> str:
    """That no strategy and no feature has it, and the nearest that one has; nothing where one does."""
    known = {knob.name: None for knob in _all_knobs()}
    return "" if name in known else f"unknown knob {name!r}{_nearest(name, known)}"


def out_of_place(
    ranges: Mapping[str, tuple[float, float]], strategies: Iterable[str], features: Iterable[str]
) -> str:
    """What is wrong with the first range of a knob that nothing searched has, or nothing.

    A preset's knobs are its own, but for those of its features.
    """
    searched = {
        knob.name: None
        for name in strategies
        for knob in knobs_of(name)
        if name.partition("+")[0] not in PRESETS or knob not in kind_of(name.partition("+")[0]).knobs
    }
    searched |= {knob.name: None for feature in features for knob in FEATURES[feature].knobs}
    for name, (low, high) in ranges.items():
        if name not in searched:
            return (
                f"{name} = {range_text(name, low, high)!r}: nothing searched has it{_nearest(name, searched)}"
            )
    return ""


def out_of_reach(ranges: Mapping[str, tuple[float, float]], max_slots: int) -> str:
    """What is wrong with a batch limit that there are no slots for, or that can be under its lower bound; or
    nothing."""
    most, least = MAX_BATCH_SIZE.name, MIN_BATCH_SIZE.name
    low, high = ranges.get(most, (MAX_BATCH_SIZE.low, max_slots))
    if high > max_slots:
        near = range_text(most, min(low, max_slots), max_slots)
        return (
            f"{most} = {range_text(most, low, high)!r}: there are {max_slots} batch slots; the nearest is "
            f"{near!r}, or for more, [device] max_slots = {high:g}"
        )
    if least in ranges and ranges[least][0] > low:
        bound, top = ranges[least]
        return (
            f"{least} = {range_text(least, bound, top)!r}: must not exceed {most}, which begins at {low:g}; "
            f"the nearest is {range_text(least, low, max(low, top))!r}, or {most} = "
            f"{range_text(most, bound, max(bound, high))!r}"
        )
    return ""


def _table(texts: list[Any]) -> dict[str, str]:
    table: dict[str, str] = {}
    for text in texts:
        name, equals, given = (part.strip() for part in str(text).partition("="))
        if not equals:
            raise ValueError(f"{text!r} has no '='; write it like max_batch_size=4-128")
        if name in table:
            raise ValueError(f"{name} is given twice; keep one of {table[name]!r} and {given!r}")
        table[name] = given
    return table


def _range(name: str, given: Any) -> tuple[float, float]:
    knobs = knobs_named(name)
    if not knobs:
        raise ValueError(f"{name} = {given!r}: {unknown_knob(name)}")
    try:
        return _ends(knobs, given)
    except ValueError as error:
        raise ValueError(f"{name} = {given!r}: {error}") from None


def _ends(knobs: list[Knob], given: Any) -> tuple[float, float]:
    can_be_auto = any(knob.auto for knob in knobs)
    if can_be_auto and str(given).strip().lower() == AUTO:
        return 0.0, 0.0
    if isinstance(given, bool) or not isinstance(given, int | float | str):
        raise ValueError(f"no range; write it like {_example(knobs[0])!r}")
    text = str(given).strip()
    # A sign or an exponent is part of a number, not the dash of a range.
    cut = next(
        (at for at in range(1, len(text)) if text[at] == "-" and text[at - 1].lower() not in "e-"), None
    )
    parts = [text] if cut is None else [text[:cut], text[cut + 1 :]]
    # The number 0 stands for auto, which stands alone.
    plain = dataclasses.replace(knobs[0], auto=False)
    ends = [float(plain.checked(_number(plain, part.strip()))) for part in parts]
    low, high = ends[0], ends[-1]
    if low > high:
        raise ValueError(
            f"its low end {low:g} is above its high end {high:g}; did you mean "
            f"{range_text(plain.name, high, low)!r}?"
        )
    return low, high


def _number(knob: Knob, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        if knob.name.endswith("_s"):
            return parse_duration(knob.name, text)
        raise ValueError(f"{text!r} is not a number; write it like {_example(knob)!r}") from None


def _example(knob: Knob) -> str:
    return range_text(knob.name, knob.low, knob.high)


def _all_knobs() -> list[Knob]:
    tables = [row.knobs for row in STRATEGIES.values()] + [row.knobs for row in FEATURES.values()]
    return [knob for knobs in tables for knob in knobs]


def knobs_named(name: str) -> list[Knob]:
    """All of one name: they differ in their defaults and in whether they can be ``auto``."""
    return [knob for knob in _all_knobs() if knob.name == name]


def _nearest(word: str, valid: Iterable[str]) -> str:
    words = list(valid)
    close = difflib.get_close_matches(word, words, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}? (one of {', '.join(words)})" if close else "; there are no knobs"
