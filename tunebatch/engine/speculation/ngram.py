"""Prompt lookup: what followed the last few tokens when they stood there before, follows again."""

from __future__ import annotations

from array import array
from collections.abc import Sequence as SequenceOf

from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.drafter import Wanted

_CODE = "i"
_WIDTH = array(_CODE).itemsize


class NGram:
    """Proposes the continuation of the latest earlier occurrence of a sequence's last tokens.

    The longest of the n-grams of ``min_ngram`` to ``max_ngram`` tokens that occurs decides (prompt lookup
    decoding, Saxena 2023; vLLM's ``ngram``). It costs no model: good where answers repeat their prompts.
    A sequence's tokens are kept as bytes, in which C searches backwards.
    """

    num_computed = num_reused = 0

    def __init__(self, max_ngram: int = 4, min_ngram: int = 2) -> None:
        self._sizes = [ngram * _WIDTH for ngram in range(min_ngram, max_ngram + 1)]

    def propose(self, wanted: SequenceOf[Wanted], generation: SequenceOf[int] = ()) -> list[SequenceOf[int]]:
        """See `Drafter`; nothing where no n-gram occurs twice."""
        return [self._continuation(sequence, count) for sequence, count in wanted]

    def reset(self) -> None:
        """Nothing to do: what it knows of a sequence lives with that sequence."""

    def _continuation(self, sequence: Sequence, count: int) -> SequenceOf[int]:
        text = _text(sequence)
        end = len(text)
        # The n-gram itself stands at the very end; a longer one ends nowhere that a shorter one does not.
        found, before = -1, end - _WIDTH
        for size in self._sizes:
            at = _last_aligned(text, text[end - size :], before) if size < end else -1
            if at < 0:
                break
            found = before = at + size
        if found < 0:
            return ()
        ahead = array(_CODE, bytes(text[found : found + count * _WIDTH]))
        # What ends before so many tokens is a loop, which may go round again.
        return (ahead * -(-count // len(ahead)))[:count]


def _last_aligned(text: bytearray, ngram: bytearray, end: int) -> int:
    """Where the n-gram was last seen before ``end`` with its tokens on token boundaries, or -1."""
    at = text.rfind(ngram, 0, end)
    while at >= 0 and at % _WIDTH:
        at = text.rfind(ngram, 0, at + len(ngram) - 1)
    return at


def _text(sequence: Sequence) -> bytearray:
    """All tokens of the sequence as bytes; those that are new are added to what was known."""
    text = sequence.text
    if text is None:
        text = sequence.text = bytearray(array(_CODE, sequence.request.prompt))
    known = len(text) // _WIDTH - len(sequence.request.prompt)
    text += array(_CODE, sequence.output[known:]).tobytes()
    return text
