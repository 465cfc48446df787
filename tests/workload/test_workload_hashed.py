"""Prompts of equal hashes have equal tokens, and those of different ones part at once, also when scaled."""

from __future__ import annotations

import json
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebatch.workload.hashed import HashedPrompts
from tunebatch.workload.prompts import RandomPrompts
from tunebatch.workload.spec import WorkloadSpec, build


def common(one, two):
    for place, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return place
    return min(len(one), len(two))


@st.composite
def chains(draw):
    """Requests of blocks: each goes on from a place in an earlier one, with ids of its own from there."""
    requests, fresh = [], 0
    for _ in range(draw(st.integers(1, 12))):
        before = draw(st.sampled_from(requests)) if requests else []
        kept = before[: draw(st.integers(0, len(before)))]
        new = draw(st.integers(0 if kept else 1, 4))
        requests.append([*kept, *range(fresh, fresh + new)])
        fresh += new
    return requests


@given(requests=chains(), block_tokens=st.integers(1, 40), seed=st.integers(0, 99))
def test_prompts_share_exactly_the_blocks_of_equal_hashes(requests, block_tokens, seed):
    source = HashedPrompts(RandomPrompts(100), block_tokens, np.random.default_rng(seed))
    prompts = [source.prompt(hashes, len(hashes) * block_tokens) for hashes in requests]
    for one, two in combinations(range(len(requests)), 2):
        shared_blocks = common(requests[one], requests[two])
        assert common(prompts[one], prompts[two]) == shared_blocks * block_tokens


def write(path, requests, last_tokens=512, output=40):
    lines = [
        {
            "timestamp": 100 * i,
            "input_length": 512 * (len(h) - 1) + last_tokens,
            "output_length": output,
            "hash_ids": h,
        }
        for i, h in enumerate(requests)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def replay(path, context, **options):
    spec = WorkloadSpec(name="m", arrivals="trace", trace_file=path, clip=options.pop("clip", True))
    return build(spec, RandomPrompts(4096), context, **options)


@given(
    requests=chains(),
    context=st.integers(40, 4000),
    last=st.integers(1, 512),
    block_size=st.sampled_from([8, 16, 32]),
)
def test_a_small_context_keeps_what_is_shared(tmp_path_factory, requests, context, last, block_size):
    path = write(tmp_path_factory.mktemp("mooncake") / "m.jsonl", requests, last)
    workload = replay(path, context, block_size=block_size)
    notes = [note for note in workload.notes if "hashed blocks" in note]
    size = int(notes[0].split("scaled to ")[1].split(",")[0]) if notes else 512
    assert size % block_size == 0 and size <= 512
    for request in workload.requests:
        assert len(request.prompt) + request.max_tokens <= context
    for one, two in combinations(workload.requests, 2):
        blocks = common(requests[one.id], requests[two.id])
        room = min(len(one.prompt), len(two.prompt))
        assert common(one.prompt, two.prompt) == min(blocks * size, room)


def test_lengths_are_scaled_with_the_blocks(tmp_path):
    path = write(tmp_path / "m.jsonl", [[0, 1, 2, 3], [0, 1, 4], [0]] * 50, last_tokens=100, output=64)
    workload = replay(path, 220)
    (note,) = [note for note in workload.notes if "scaled" in note]
    assert note == (
        "hashed blocks of 512 tokens scaled to 64, and all lengths with them, to fit a context of 220 "
        "tokens; requests share the same blocks as in the trace"
    )
    assert [(len(r.prompt), r.max_tokens) for r in workload.requests[:3]] == [(205, 8), (141, 8), (13, 8)]
    assert [len(r.prompt) for r in replay(path, 4096).requests[:3]] == [1636, 1124, 100]
    assert replay(path, 4096).notes == ()
    with pytest.raises(ValueError, match=r"m\.jsonl, line 1: 1636 prompt \+ 64 output tokens exceed .* 220"):
        replay(path, 220, clip=False)


def test_a_clipped_prompt_keeps_the_beginning_that_others_share(tmp_path):
    workload = replay(write(tmp_path / "m.jsonl", [[0, 1]] * 300 + [list(range(2, 60))]), 1200)
    longest = workload.requests[-1]
    assert len(longest.prompt) == 1160
    assert "1 of 301 requests was clipped to the context of 1200 tokens" in workload.notes
    assert not any("scaled" in note for note in workload.notes)
