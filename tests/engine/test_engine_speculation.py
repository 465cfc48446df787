"""What is drafted: prompt lookup, and how many tokens pay."""

from __future__ import annotations

import itertools
import json
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tunebatch.engine.request import Request
from tunebatch.engine.sequence import Sequence
from tunebatch.engine.speculation.depth import Auto
from tunebatch.engine.speculation.ngram import NGram


def sequence(*tokens: int, output: tuple[int, ...] = ()) -> Sequence:
    made = Sequence(Request(0, tokens, max_tokens=100))
    made.output += output
    return made


def drafts(made: Sequence, count: int = 4) -> list[int]:
    (tokens,) = NGram().propose([(made, count)])
    return list(tokens)


def test_what_followed_before_follows_again() -> None:
    assert drafts(sequence(1, 2, 3, 4, 5, 6, 9, 1, 2), 3) == [3, 4, 5]
    assert drafts(sequence(1, 2, 3, 4, 5, output=(8, 1, 2)), 2) == [3, 4]
    # The longer context decides, of equal ones the later.
    assert drafts(sequence(1, 2, 3, 7, 0, 2, 3, 8, 0, 1, 2, 3), 1) == [7]
    assert drafts(sequence(2, 3, 7, 0, 2, 3, 8, 0, 2, 3), 1) == [8]
    assert drafts(sequence(1, 2, 3, 4, 5, 6)) == [] == drafts(sequence(1)) == drafts(sequence(7, 7))
    # One token alone is no context.
    assert drafts(sequence(1, 2, 3, 1)) == []


def test_what_repeats_itself_goes_on_repeating() -> None:
    assert drafts(sequence(5, 6, 7, 5, 6, 7, 5, 6), 5) == [7, 5, 6, 7, 5]
    assert drafts(sequence(9, 4, 4, 4), 3) == [4, 4, 4]


def test_tokens_are_found_on_their_own_boundaries_only() -> None:
    # In little-endian bytes 256 and 1 are 0, 1, 0, 0 and 1, 0, 0, 0: one stands inside the other.
    assert drafts(sequence(65536, 256, 1, 7, 256, 65536, 3, 1, 256), 2) == []
    assert drafts(sequence(1 << 19, 1 << 16, 5, 1 << 11, 1 << 8, 6, 1 << 19, 1 << 16), 1) == [5]


@pytest.mark.parametrize(
    "tokens",
    [
        [65536] * 300 + [1, 1],
        [256] * 300 + [1, 1],
        [256, 1] * 150 + [1, 0, 1, 0],
        [5] * 300 + [7, 5, 5, 5],
        # What no decoder takes for a character, and the first and last of all ids.
        [0xD800, 0xDFFF, 0, 0xFFFFF, 9, 0xD800, 0xDFFF],
    ],
)
def test_lookup_equals_a_search_of_the_list_at_its_worst(tokens: list[int]) -> None:
    for cut in range(1, len(tokens), 37):
        made = sequence(*tokens[:cut], output=tuple(tokens[cut:]))
        assert drafts(made, 5) == searched(tokens, 5)


@settings(max_examples=300, deadline=None)
@given(
    st.lists(st.sampled_from([0, 1, 2, 256, 65536]) | st.integers(0, 0xFFFFF), min_size=1, max_size=40),
    st.integers(1, 6),
    st.data(),
)
def test_lookup_equals_a_search_of_the_list(tokens: list[int], count: int, data: st.DataObject) -> None:
    cut = data.draw(st.integers(1, len(tokens)))
    made, drafter = sequence(*tokens[:cut]), NGram()
    for token in tokens[cut:]:
        drafter.propose([(made, count)])
        made.output.append(token)
    (got,) = drafter.propose([(made, count)])
    assert list(got) == searched(tokens, count)


def searched(tokens: list[int], count: int) -> list[int]:
    for ngram in (4, 3, 2):
        for end in range(len(tokens) - 1, ngram - 1, -1):
            if ngram < len(tokens) and tokens[end - ngram : end] == tokens[-ngram:]:
                ahead = tokens[end:]
                return [ahead[i % len(ahead)] for i in range(count)]
    return []


def serve(auto: Auto, draft: float, acceptance: float, batch: int, steps: int) -> None:
    """Steps that take 1, and for each draft so much more, with noise."""
    luck = random.Random(0)
    for _ in range(steps):
        depth = auto.choose(batch)
        accepted = []
        for _ in range(batch):
            count = 0
            while count < depth and luck.random() < acceptance:
                count += 1
            accepted.append(count)
        if depth:
            auto.verified(depth, batch, accepted)
        auto.took(batch, depth, (1.0 + depth * draft) * luck.uniform(0.9, 1.2))


@pytest.mark.parametrize(
    ("draft", "acceptance", "least", "most"),
    [(0.07, 0.9, 5, 8), (0.17, 0.7, 1, 4), (0.32, 0.2, 0, 0), (1.5, 0.9, 0, 0)],
)
def test_the_depth_follows_acceptance_and_cost(
    draft: float, acceptance: float, least: int, most: int
) -> None:
    auto = Auto(8)
    serve(auto, draft, acceptance, batch=4, steps=200)
    ((low, high, depth),) = auto.table()
    assert (low, high) == (1, 4) and least <= depth <= most
    rates = [sum(acceptance**i for i in range(k + 1)) / (1 + k * draft) for k in range(9)]
    assert rates[depth] >= 0.93 * max(rates)


def test_depths_are_learnt_for_each_size_of_batch() -> None:
    auto = Auto(8)
    serve(auto, 0.07, 0.8, batch=1, steps=200)
    serve(auto, 1.0, 0.8, batch=32, steps=100)
    (small, large) = auto.table()
    # Sizes that were never seen are like the nearest: 16 is nearer to 1, 17 to 32.
    assert small[:2] == (1, 16) and small[2] >= 3
    assert large == (17, 32, 0)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 300), st.sampled_from([0.02, 0.1, 1.0])), min_size=1, max_size=6))
def test_the_table_has_every_size_up_to_the_largest_once(served: list[tuple[int, float]]) -> None:
    auto = Auto(8)
    for batch, draft in served:
        for _ in range(140):
            depth = auto.choose(batch)
            auto.verified(depth, batch, [depth] * batch)
            auto.took(batch, depth, 1.0 + depth * draft)
    rows = auto.table()
    sizes = [size for low, high, _ in rows for size in range(low, high + 1)]
    assert sizes == list(range(1, max(batch for batch, _ in served) + 1))
    assert all(one[2] != other[2] for one, other in itertools.pairwise(rows)), "two rows that are one"


def test_other_traffic_is_learnt_however_long_the_old_was_served() -> None:
    auto = Auto(8)
    serve(auto, 0.17, 0.9, batch=4, steps=2000)
    assert auto.table()[0][2] >= 3
    serve(auto, 0.17, 0.1, batch=4, steps=200)
    assert auto.table()[0][2] == 0
    serve(auto, 0.17, 0.9, batch=4, steps=4000)
    assert auto.table()[0][2] >= 3, "without drafts one step in 32 still looks again"


def test_a_size_whose_steps_all_computed_prompts_costs_what_the_nearest_does() -> None:
    auto = Auto(8)
    serve(auto, 1.0, 0.8, batch=16, steps=200)
    for _ in range(50):
        depth = auto.choose(40)
        if depth:
            auto.verified(depth, 40, [min(depth, 2)] * 40)
    assert [row[2] for row in auto.table()] == [0]


def test_the_first_steps_of_a_run_and_of_a_kind_are_not_what_a_step_costs() -> None:
    """Cold plain steps must not make drafts look cheap, nor must catching up make them look dear."""
    for draft, gains in ((1.0, False), (0.2, True)):
        auto, since, before, chosen = Auto(8), 0, 0, []
        for step in range(200):
            depth = auto.choose(1)
            since = since + 1 if (depth > 0) == (before > 0) else 0
            slow = 4.0 if step < 4 or (since == 0 and depth) else 1.0
            if depth:
                auto.verified(depth, 1, [round(0.7 * depth)])
            auto.took(1, depth, slow * (1.0 + draft * depth))
            before = depth
            chosen.append(depth)
        assert all((depth > 0) == gains for depth in chosen[20:50])


def test_a_large_batch_whose_drafts_do_not_pay_loses_little_by_trying() -> None:
    auto, took, plain = Auto(8), 0.0, 0.0
    before = 0
    for _ in range(2000):
        depth = auto.choose(32)
        duration = 1.0 + 0.8 * depth + 3.0 * (depth > 0 and before == 0)  # with catching up
        if depth:
            auto.verified(depth, 32, [depth * 3 // 5] * 32)
        auto.took(32, depth, duration)
        took += duration
        plain += 1.0 + depth * 3 // 5
        before = depth
    assert took < 1.03 * plain


def test_nothing_is_told_before_both_kinds_of_steps_were_measured() -> None:
    auto = Auto(8)
    for _ in range(30):
        depth = auto.choose(8)
        auto.took(8, depth, 1.0)
    assert auto.table() == []


def test_what_was_tried_while_prompts_were_computed_is_tried_again() -> None:
    auto = Auto(8)
    for step in range(100):
        depth = auto.choose(2)
        if depth:
            auto.verified(depth, 2, [0, 0])
        if step > 40:  # all before computed prompts as well
            auto.took(2, depth, 1.0 + depth)
    assert auto.table() == [(1, 2, 0)]


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 600), st.sampled_from([0.02, 0.1, 1.0])), min_size=1, max_size=4))
def test_vllm_takes_the_table(served: list[tuple[int, float]]) -> None:
    """The rules by which vLLM refuses ``num_speculative_tokens_per_batch_size``: three whole numbers a row,
    from 1 on, each range after the one before, no more drafts than ``num_speculative_tokens``."""
    auto = Auto(8)
    for batch, draft in served:
        for _ in range(140):
            depth = auto.choose(batch)
            if depth:
                auto.verified(depth, batch, [depth // 2] * batch)
            auto.took(batch, depth, 1.0 + depth * draft)
    rows = json.loads(json.dumps(auto.table()))
    assert rows and rows[0][0] == 1
    previous_end = 0
    for start, end, drafts in rows:
        assert previous_end < start <= end and 0 <= drafts <= 8
        previous_end = end
