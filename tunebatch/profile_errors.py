"""From what is wrong with a profile to one line: file, key, value and the nearest valid one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any, get_args

from pydantic import ValidationError

from tunebatch.profile_sections import Section


class ProfileError(ValueError):
    """A profile that cannot be used: file, key, value and the nearest valid one, in one line."""


def nearest(word: str, valid: Iterable[str]) -> str:
    """``; did you mean 'x'? (one of x, y)``"""
    words = list(valid)
    close = difflib.get_close_matches(str(word), words, n=1, cutoff=0.0)
    return f"; did you mean {close[0]!r}? (one of {', '.join(words)})" if close else ""


def of_a_range(where: str, problem: object) -> str:
    """Of a knob's range, which has a table of its own."""
    return f"{where} {problem}" if where.startswith("--") else f"{where}: [search.knobs] {problem}"


def said(where: str, section: str, key: str, value: Any) -> str:
    """``mine.toml: [search] trials = 0``, or of a flag what was typed."""
    if not where.startswith("--"):
        return f"{where}: [{section}] {key} = {value!r}"
    typed = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    return f"{where} {typed if typed.strip() else repr(typed)}"


def one_line(
    error: ValidationError,
    source: str,
    origin: Mapping[tuple[str, str], str],
    sections: Mapping[str, type[Section] | None],
) -> str:
    """The first problem.

    Args:
        source: The file.
        origin: By section and key the flag or variable that beat the file.
    """
    first = error.errors(include_url=False)[0]
    section, key = (*(str(part) for part in first["loc"]), "", "")[:2]
    where, model = origin.get((section, key), source), sections.get(section)
    kind, value, context = first["type"], first["input"], first.get("ctx", {})
    if kind == "extra_forbidden":
        if not key:
            return f"{where}: unknown section [{section}]{nearest(section, sections)}"
        valid = model.model_fields if model is not None else ()
        return f"{where}: [{section}] {key} = {value!r}: unknown key{nearest(key, valid)}"
    if (section, key) == ("search", "knobs") and kind == "value_error":
        return of_a_range(where, context["error"])
    begin = said(where, section, key, value)
    if model is None or key not in model.model_fields:
        return f"{begin}: {first['msg'][:1].lower()}{first['msg'][1:]}"
    if kind == "literal_error":
        return f"{begin}: unknown value{nearest(value, _choices(model.model_fields[key].annotation))}"
    if kind == "value_error":
        return f"{begin}: {context['error']}"
    return f"{begin}: {_problem(kind, value, context, model.model_fields[key].default, first['msg'])}"


def _problem(kind: str, value: Any, context: Mapping[str, Any], default: Any, said_by_pydantic: str) -> str:
    """What is wrong with one value, and the nearest valid one."""
    for bound in ("ge", "le"):
        if bound in context:
            return f"impossible; the nearest valid value is {context[bound]}"
    if "gt" in context:
        above = default if isinstance(default, int | float) else abs(float(value)) or 1
        return f"must be above {context['gt']}, such as {above:g}"
    digits = re.match(r"\s*(\d+)", str(value))
    near = digits[1] if digits else default if isinstance(default, int | float) else 100
    if kind == "int_from_float":
        return f"must be a whole number; the nearest is {round(value)}"
    if kind in ("int_parsing", "int_type"):
        return f"must be a whole number, such as {near}"
    if kind in ("float_parsing", "float_type", "finite_number"):
        return f"must be a number, such as {near}"
    if kind in ("bool_parsing", "bool_type"):
        return "must be true or false"
    if kind == "string_type":
        return f"must be text, in quotes: {str(value)!r}"
    if kind == "string_too_short":
        return f"must not be empty; the nearest valid value is {default!r}"
    return f"{said_by_pydantic[:1].lower()}{said_by_pydantic[1:]}"


def _choices(annotation: Any) -> list[str]:
    """The words of a literal, which may be optional."""
    found: list[str] = []
    for one in get_args(annotation):
        if one is not type(None):
            found += [one] if isinstance(one, str) else _choices(one)
    return found
