"""Mooncake: JSONL with ``timestamp`` (ms), ``input_length``, ``output_length`` and ``hash_ids``.

Source: repository kvcache-ai/Mooncake, Apache-2.0 (FAST 2025). There is one hash id per 512 tokens of the
prompt, the last block partial. An id stands for a block with everything before it, so equal leading ids
are a prefix that can be reused. The conversation trace gives times in ticks of about 3 s.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tunebatch.workload.traces.json_line import JsonLine, read_lines, shown, wholes
from tunebatch.workload.traces.row import HASHED_BLOCK_TOKENS, NoArrivalsError, ReadOptions, TraceRow

_TIME, _PROMPT, _OUTPUT, _HASHES = "timestamp", "input_length", "output_length", "hash_ids"


def read_mooncake(path: Path, options: ReadOptions) -> Iterator[TraceRow]:
    """The requests of a file; keys beside these four are passed over.

    Raises:
        TraceError: A line that is no object, a missing key, an impossible value, or not one hash per block.
    """
    for line in read_lines(path):
        for key in (_PROMPT, _OUTPUT, _HASHES):
            if key not in line.values:
                line.refuse(f"no {key!r}", f"{_PROMPT}, {_OUTPUT} and {_HASHES}")
        if options.need_arrivals and _TIME not in line.values:
            raise NoArrivalsError(path, line.number, f"no {_TIME!r}")
        prompt_tokens = line.whole(_PROMPT, 0)
        yield TraceRow(
            line=line.number,
            arrival_s=line.number_of(_TIME, 0.0) / 1000 if options.need_arrivals else None,
            prompt_tokens=prompt_tokens,
            output_tokens=line.whole(_OUTPUT, 0),
            hashes=_hashes(line, prompt_tokens) if prompt_tokens else None,
        )


def _hashes(line: JsonLine, prompt_tokens: int) -> tuple[int, ...]:
    found = wholes(line.values[_HASHES])
    if found is None:
        line.refuse(f"{_HASHES} is {shown(line.values[_HASHES])}", "a list of whole numbers, 0 or more")
    blocks = -(-prompt_tokens // HASHED_BLOCK_TOKENS)
    if len(found) != blocks:
        line.refuse(
            f"{len(found)} {_HASHES} for {prompt_tokens} tokens",
            f"{blocks}, one per {HASHED_BLOCK_TOKENS} tokens",
        )
    return found
