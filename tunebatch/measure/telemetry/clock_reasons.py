"""Why a GPU's clocks are not higher: NVML's bits in words."""

from __future__ import annotations

IDLE = "idle"
POWER_CAP = "power cap"
# In the order of nvml.h. A GPU at its power limit is what a full load looks like, and clocks that somebody
# set are meant; the rest takes speed away that the next run may have.
_WORDS = {
    0x1: IDLE,
    0x2: "clocks set by hand",
    0x4: POWER_CAP,
    0x8: "hardware slowdown",
    0x10: "sync boost",
    0x20: "thermal slowdown",
    0x40: "hardware thermal slowdown",
    0x80: "power brake",
    0x100: "display clocks",
    0x200: "board limit",
    0x400: "reliability limit",
}
_MEANT = frozenset({IDLE, POWER_CAP, "clocks set by hand", "sync boost", "display clocks"})


def in_words(bits: int) -> tuple[str, ...]:
    """One word or two for each bit; a bit that is not known is told by its number."""
    known = [word for bit, word in _WORDS.items() if bits & bit]
    rest = bits & ~sum(_WORDS)
    return (*known, *([f"reason {rest:#x}"] if rest else []))


def throttles(word: str) -> bool:
    """It makes a run slower than another on the same GPU would be."""
    return word not in _MEANT
