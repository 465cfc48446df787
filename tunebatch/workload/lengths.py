"""How long prompts and outputs are: the laws, and how users write them (``uniform:16-256``)."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from pathlib import Path

from tunebatch.workload.laws import Empirical, Fixed, Interleaved, LengthLaw, Lengths, LogNormal, Uniform
from tunebatch.workload.observed import read_observed

__all__ = [
    "Empirical",
    "Fixed",
    "Interleaved",
    "LengthLaw",
    "Lengths",
    "LogNormal",
    "Uniform",
    "parse_length",
]

_WHOLE = re.compile(r"\d+", re.ASCII)
_NUMBER = re.compile(r"-?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_LOGNORMAL_KEYS = ("p50", "median", "p90", "sigma", "low", "high")


def parse_length(text: str, where: str = "length") -> LengthLaw:
    """The law that the text names.

    Args:
        text: ``N``, ``fixed:N``, ``uniform:LOW-HIGH``, ``lognormal:p50=N,p90=N`` or ``empirical:FILE``.
            A log-normal takes ``median`` for ``p50``, ``sigma`` instead of ``p90``, and ``low`` and ``high``
            as bounds; a file has a length a line, or a length, a comma and its weight.
        where: What the text is the value of, for the message.

    Raises:
        ValueError: One line with the place, the text, what is wrong and the nearest valid form.
    """
    name, colon, arguments = text.strip().partition(":")
    name = name.strip().lower()
    try:
        if not colon:
            return _bare(name)
        if name not in _LAWS:
            near = difflib.get_close_matches(name, _LAWS, 1, 0.5)
            hint = f"did you mean {f'{near[0]}:{arguments}'!r}?" if near else f"use {_forms()}"
            raise ValueError(f"unknown law {name!r}; {hint}")
        return _LAWS[name][0](arguments.strip())
    except ValueError as error:
        raise ValueError(f"{where} {text!r}: {error}") from None


def _bare(text: str) -> LengthLaw:
    if _WHOLE.fullmatch(text):
        return Fixed(int(text))
    if re.fullmatch(r"\d+-\d+", text, re.ASCII):
        raise ValueError(f"a range needs its law; did you mean {f'uniform:{text}'!r}?")
    near = difflib.get_close_matches(text, _LAWS, 1, 0.5)
    raise ValueError(f"not a length; use {_LAWS[near[0]][1] if near else _forms()}")


def _fixed(text: str) -> Fixed:
    return Fixed(_whole(text, "fixed"))


def _uniform(text: str) -> Uniform:
    low, dash, high = text.partition("-")
    if not dash:
        raise ValueError(f"no range; use {_LAWS['uniform'][1]}")
    return Uniform(_whole(low, "uniform"), _whole(high, "uniform"))


def _lognormal(text: str) -> LogNormal:
    form = _LAWS["lognormal"][1]
    given: dict[str, str] = {}
    for part in text.split(","):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            raise ValueError(f"{part.strip()!r} is not key=value; use {form}")
        if key not in _LOGNORMAL_KEYS:
            near = difflib.get_close_matches(key, _LOGNORMAL_KEYS, 1, 0.5)
            raise ValueError(
                f"unknown key {key!r}; " + (f"did you mean {near[0]!r}?" if near else f"use {form}")
            )
        key = "p50" if key == "median" else key
        if key in given:
            raise ValueError(f"{key!r} is given twice; use {form}")
        given[key] = value
    if "p50" not in given:
        raise ValueError(f"no p50; use {form}")
    if ("p90" in given) == ("sigma" in given):
        raise ValueError(f"needs either p90 or sigma; use {form}")
    p50 = _number(given["p50"], "lognormal")
    low = _whole(given.get("low", "1"), "lognormal")
    high = _whole(given["high"], "lognormal") if "high" in given else None
    if "p90" in given:
        return LogNormal.fit(p50, _number(given["p90"], "lognormal"), low, high)
    return LogNormal(p50, _number(given["sigma"], "lognormal"), low, high)


def _empirical(text: str) -> Empirical:
    if not text:
        raise ValueError(f"no file; use {_LAWS['empirical'][1]}")
    return read_observed(Path(text))


def _whole(text: str, law: str) -> int:
    if not _WHOLE.fullmatch(text.strip()):
        raise ValueError(f"{text.strip()!r} is not a whole number of tokens; use {_LAWS[law][1]}")
    return int(text)


def _number(text: str, law: str) -> float:
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"{text!r} is not a number; use {_LAWS[law][1]}")
    return float(text)


def _forms() -> str:
    *first, last = (form for _, form in _LAWS.values())
    return f"{', '.join(first)} or {last}"


_LAWS: dict[str, tuple[Callable[[str], LengthLaw], str]] = {
    "fixed": (_fixed, "'128'"),
    "uniform": (_uniform, "'uniform:16-256'"),
    "lognormal": (_lognormal, "'lognormal:p50=417,p90=1678'"),
    "empirical": (_empirical, "'empirical:FILE'"),
}
