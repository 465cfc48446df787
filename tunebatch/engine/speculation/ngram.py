"""Prompt lookup: what followed the last few tokens when they stood there before, follows again."""

from __future__ import annotations

from collections.abc import Sequence as SequenceOf

from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.drafter import Wanted

# A token is the character of its id plus this: beyond the surrogates, which no decoder takes. So ids may
# go up to 2 ** 20; the largest published vocabularies have a quarter of that.
_OFFSET = 1 << 16
_ADD_OFFSET = bytes((value + 1) % 256 for value in range(256))  # to the third byte of an id


class NGram:
    """Proposes the continuation of the latest earlier occurrence of a sequence's last tokens.

    The longest of the n-grams of ``min_ngram`` to ``max_ngram`` tokens that occurs decides (prompt lookup
    decoding, Saxena 2023; vLLM's ``ngram``). It costs no model: good where answers repeat their prompts.
    A sequence's tokens are kept as a string, a character each, in which C searches backwards: whatever the
    tokens are, it compares at most ``max_ngram`` of them at each place.
    """

    num_computed = num_reused = 0

    def __init__(self, max_ngram: int = 4, min_ngram: int = 2) -> None:
        self._sizes = range(min_ngram, max_ngram + 1)

    def propose(self, wanted: SequenceOf[Wanted], generation: SequenceOf[int] = ()) -> list[SequenceOf[int]]:
        """See `Drafter`; nothing where no n-gram occurs twice."""
        return [self._continuation(sequence, count) for sequence, count in wanted]

    def reset(self) -> None:
        """Nothing to do: what it knows of a sequence lives with that sequence."""

    def _continuation(self, sequence: Sequence, count: int) -> SequenceOf[int]:
        text = _text(sequence)
        end = len(text)
        # The n-gram itself stands at the very end; a longer one ends nowhere that a shorter one does not.
        found, before = -1, end - 1
        for size in self._sizes:
            at = text.rfind(text[end - size :], 0, before) if size < end else -1
            if at < 0:
                break
            found = before = at + size
        if found < 0:
            return ()
        ahead = sequence.token_ids(found, min(count, end - found))
        # What ends before so many tokens is a loop, which may go round again.
        return ahead if len(ahead) == count else (ahead * -(-count // len(ahead)))[:count]


def _text(sequence: Sequence) -> str:
    """All tokens of the sequence as characters; those that are new are added to what was known."""
    text = sequence.text
    if text is None:
        text = _characters(sequence.request.packed)
    known = len(text) - len(sequence.request.prompt)
    new = sequence.output[known:]
    text += chr(new[0] + _OFFSET) if len(new) == 1 else "".join([chr(token + _OFFSET) for token in new])
    sequence.text = text
    return text


def _characters(packed: bytes) -> str:
    """As ``chr`` of each id plus the offset, thirty times as fast."""
    shifted = bytearray(packed)
    shifted[2::4] = shifted[2::4].translate(_ADD_OFFSET)
    return shifted.decode("utf-32-le")
