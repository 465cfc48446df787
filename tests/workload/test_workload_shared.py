"""Prompts share what the description says and part right after it; the bound on savings counts that."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tunebatch.engine.request import Request
from tunebatch.models import bundled_corpus
from tunebatch.workload.lengths import Fixed, Interleaved, Uniform
from tunebatch.workload.named import NAMED, scaled_to
from tunebatch.workload.prompts import CorpusPrompts, RandomPrompts
from tunebatch.workload.sharing import shared_share, sharing_text
from tunebatch.workload.spec import WorkloadSpec, build
from tunebatch.workload.turns import Turn

PROMPTS = RandomPrompts(500)
SPEC = WorkloadSpec(
    name="test",
    rate_per_s=4.0,
    prefix_lengths=Uniform(20, 60),
    num_prefixes=4,
    prefix_skew=1.0,
    prompt_lengths=Uniform(1, 30),
    output_lengths=Fixed(5),
    num_requests=60,
)


def common(one, two):
    """Tokens that two prompts begin with alike."""
    for place, (a, b) in enumerate(zip(one, two, strict=False)):
        if a != b:
            return place
    return min(len(one), len(two))


def prompts_of(workload):
    return [request.prompt for request in workload.requests]


@pytest.fixture(scope="module")
def corpus():
    return CorpusPrompts(bundled_corpus())


@pytest.mark.parametrize("source", ["random", "corpus"])
def test_prompts_share_their_prefix_and_not_one_token_more(source, corpus):
    source = PROMPTS if source == "random" else corpus
    prompts = prompts_of(build(SPEC, source, 2048))
    ends = Counter(common(one, two) for one, two in combinations(prompts, 2))
    del ends[0]
    assert 1 <= len(ends) <= 4, "as many lengths as prefixes"
    assert all(20 <= end <= 60 for end in ends)
    plain = prompts_of(
        build(replace(SPEC, prefix_lengths=None, num_prefixes=1, prefix_skew=0.0), source, 2048)
    )
    assert max(common(one, two) for one, two in combinations(plain, 2)) == 0
    assert all(prompt[-len(own) :] == own for prompt, own in zip(prompts, plain, strict=True)), (
        "a prefix changes nothing of what follows"
    )


def test_popularity_follows_zipfs_law():
    spec = replace(SPEC, num_requests=4000, num_prefixes=3, prompt_lengths=Fixed(1), prefix_lengths=Fixed(8))
    counts = sorted(Counter(prompt[:8] for prompt in prompts_of(build(spec, PROMPTS, 99))).values())
    shares = np.array([1 / 3, 1 / 2, 1.0])
    assert counts == pytest.approx(4000 * shares / shares.sum(), rel=0.1)
    even = build(replace(spec, prefix_skew=0.0), PROMPTS, 99)
    assert Counter(p[:8] for p in prompts_of(even)).most_common()[-1][1] > 1200


def test_a_long_prefix_is_cut_and_leaves_a_request_something_of_its_own():
    spec = replace(SPEC, prefix_lengths=Fixed(400), num_prefixes=1, prefix_skew=0.0)
    workload = build(spec, PROMPTS, 100)
    assert {len(prompt) for prompt in prompts_of(workload)} == {95}
    assert {common(one, two) for one, two in combinations(prompts_of(workload), 2)} == {94}
    assert workload.notes == ("60 of 60 requests were clipped to the context of 100 tokens",)
    with pytest.raises(ValueError, match=r"request 0: .* exceed the context of 100"):
        build(replace(spec, clip=False), PROMPTS, 100)


def requests(*prompts):
    return [Request(id=i, prompt=tuple(prompt), max_tokens=1) for i, prompt in enumerate(prompts)]


@pytest.mark.parametrize(
    ("prompts", "shared"),
    [
        (["abcdefgh", "abcdefgh"], 4),  # the last token has to be computed, and with it its block
        (["abcdefghi", "abcdefghi"], 8),
        (["abcdx", "abcdy", "abcdz"], 8),
        (["abcx", "abcy"], 0),
        (["abcdefgh1", "xbcdefgh1"], 0),  # equal blocks behind different ones are others
        (["abcd1", "wxyz1", "abcd2", "wxyzabcd3"], 8),
        (["abcd"], 0),
    ],
)
def test_whole_blocks_are_shared_from_the_beginning(prompts, shared):
    told = [[ord(letter) for letter in prompt] for prompt in prompts]
    total = sum(len(prompt) for prompt in prompts)
    assert shared_share(requests(*told), 4) == shared / total


@given(
    prompts=st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=12), min_size=1, max_size=8),
    block_size=st.integers(1, 4),
)
def test_the_bound_is_what_the_longest_match_gives(prompts, block_size):
    shared = 0
    for place, prompt in enumerate(prompts):
        most = max((common(prompt, other) for other in prompts[:place]), default=0)
        shared += min(most, len(prompt) - 1) // block_size * block_size
    assert shared_share(requests(*prompts), block_size) == shared / sum(map(len, prompts))


def test_answers_are_shared_but_for_their_last_token():
    turns = (Turn(True, (1, 2, 3, 4), (5, 6, 7, 8), 0.0), Turn(False, (9, 9), (5,), 0.0))
    told = requests((1, 2, 3, 4), (1, 2, 3, 4, 5, 6, 7, 8, 9, 9))
    assert shared_share(told, 4, turns) == 4 / 14
    longer = (replace(turns[0], answer=(5, 6, 7, 8, 9)), turns[1])
    assert shared_share(told, 4, longer) == 8 / 14


@pytest.mark.parametrize("name", ["system-prompt", "rag", "agents", "multi-turn"])
@pytest.mark.parametrize("context", [1024, 2048])
def test_all_lengths_are_scaled_alike_and_nearly_all_then_fits(name, context):
    spec = scaled_to(NAMED[name], context)
    factor = float(spec.notes[-1].split()[3])
    for law in ("prompt_lengths", "output_lengths", "prefix_lengths"):
        assert getattr(spec, law) == getattr(NAMED[name], law).scaled(factor)
    workload = build(spec, PROMPTS, context)
    cut = sum(int(note.split()[0]) for note in workload.notes if "clipped" in note or "ended early" in note)
    assert cut <= 0.03 * sum(turn.first for turn in workload.turns or ()) + 20 * (workload.turns is None)
    longest = sorted(len(request.prompt) + request.max_tokens for request in workload.requests)
    assert longest[-1] > 0.7 * context, "not shrunk more than is needed"


def test_the_description_tells_the_bound():
    workload = build(replace(SPEC, prefix_lengths=Fixed(32), num_prefixes=1, prefix_skew=0.0), PROMPTS, 2048)
    total = sum(map(len, prompts_of(workload)))
    assert workload.shared_share == 59 * 32 / total
    assert (
        f"up to {-(-5900 * 32 // total)} % of prompt tokens shared with an earlier request"
        in workload.description
    )
    assert "no prompt tokens shared" in build(NAMED["quickstart"], PROMPTS, 2048).description
    coarse = build(
        replace(SPEC, prefix_lengths=Fixed(32), num_prefixes=1, prefix_skew=0.0), PROMPTS, 99, block_size=33
    )
    assert coarse.shared_share == 0.0
    assert sharing_text(0.001).startswith("up to 1 %") and sharing_text(0.72).startswith("up to 72 %")


def test_plain_workloads_share_nothing_by_accident(corpus):
    """Though the corpus of the bundled model has fewer documents than there are requests."""
    for name in ("chat", "code", "summarize", "offline", "long-prompt"):
        assert build(scaled_to(NAMED[name], 2048), corpus, 2048).shared_share == 0.0


@pytest.mark.parametrize(
    ("name", "least"), [("system-prompt", 0.8), ("rag", 0.85), ("agents", 0.85), ("multi-turn", 0.85)]
)
@pytest.mark.parametrize("context", [512, 2048, 32768])
def test_named_workloads_share_most_of_their_prompts_at_any_context(name, least, context):
    workload = build(scaled_to(replace(NAMED[name], num_requests=300), context), PROMPTS, context)
    assert least - 0.25 * (context < 2048) < workload.shared_share < 1
    assert any("scaled by" in note for note in workload.notes) == (context < 32768)


@pytest.mark.parametrize("name", NAMED)
@given(context=st.integers(48, 9000), seed=st.integers(0, 99))
def test_scaled_lengths_never_exceed_the_context(name, context, seed):
    spec = scaled_to(replace(NAMED[name], num_requests=25), context)
    for request in build(spec, PROMPTS, context, seed).requests:
        assert len(request.prompt) + request.max_tokens <= context


def test_more_requests_begin_with_the_same_ones():
    for name in ("system-prompt", "rag", "long-prompt", "multi-turn", "agents"):
        spec = scaled_to(replace(NAMED[name], num_requests=30), 2048)
        few, more = (build(replace(spec, num_requests=n), PROMPTS, 2048) for n in (30, 75))
        assert more.patterns[:30] == few.patterns


def test_every_so_many_th_prompt_is_a_long_one():
    law = Interleaved(Uniform(1, 9), Uniform(100, 200), 5)
    lengths = law.sample(23, np.random.default_rng(0))
    assert (lengths > 9).nonzero()[0].tolist() == [4, 9, 14, 19]
    assert law.scaled(10).sample(5, np.random.default_rng(0)).max() >= 1000
    with pytest.raises(ValueError, match="every is 1"):
        Interleaved(Fixed(1), Fixed(2), 1)
    workload = build(scaled_to(NAMED["long-prompt"], 2048), PROMPTS, 2048)
    long = [request.id for request in workload.requests if len(request.prompt) > 1000]
    assert long == list(range(19, 1000, 20))
    assert "one of 20 prompts is a very long one" in workload.notes


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"num_prefixes": 0}, "num_prefixes is 0"),
        ({"prefix_skew": -1.0}, "prefix_skew is -1"),
        ({"prefix_skew": float("nan")}, "prefix_skew is nan"),
        ({"prefix_lengths": None}, "of no use without prefix_lengths"),
        (
            {"trace_file": "t", "prompt_lengths": None, "output_lengths": None},
            "the prompts come from trace_file; leave out prefix_lengths and turns",
        ),
    ],
)
def test_wrong_descriptions_name_the_field(values, named):
    with pytest.raises(ValueError, match=named):
        replace(SPEC, **values)
