"""Prompts have the wanted length, come from the corpus, part at once, and do not depend on each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tunebatch.workload.prompts import FIRST_ORDINARY_ID, CorpusPrompts, RandomPrompts

TOKENS = np.arange(100, 130, dtype=np.int16)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.safetensors"
    save_file({"tokens": TOKENS}, path)
    return CorpusPrompts(path)


@pytest.fixture(scope="module", params=["corpus", "random"])
def prompts(request, corpus):
    return corpus if request.param == "corpus" else RandomPrompts(50)


def test_a_window_is_text_of_the_corpus_and_wraps_around(corpus):
    rng = np.random.default_rng(0)
    begins = set()
    for length in (1, 5, 30, 31, 95):
        for number in range(30):
            prompt = corpus.prompt(number, length, rng)
            begins.add(prompt[0])
            assert len(prompt) == length
            assert prompt == tuple(100 + (prompt[0] - 100 + i) % 30 for i in range(length))
            assert all(type(token) is int for token in prompt)
    assert begins == set(range(100, 130))


def test_a_window_starts_at_any_place_of_its_first_token(tmp_path):
    tokens = np.array([9, 5, 6, 9, 7, 8, 9, 0, 2], np.int16)
    save_file({"tokens": tokens}, tmp_path / "c")
    source, rng = CorpusPrompts(tmp_path / "c"), np.random.default_rng(0)
    seen = {source.prompt(number, 2, rng) for number in range(5) for _ in range(40)}
    assert seen == {(9, 5), (5, 6), (6, 9), (9, 7), (7, 8), (8, 9), (9, 0)}, "from no special token, though"


@given(numbers=st.sets(st.integers(0, 10**6), min_size=2, max_size=40), length=st.integers(6, 20))
def test_different_numbers_part_at_once(prompts, numbers, length):
    rng = np.random.default_rng(0)
    size = 30 if isinstance(prompts, CorpusPrompts) else 46
    texts = {number: prompts.prompt(number, length, rng) for number in numbers}
    openings = {text[0] for text in texts.values()}
    assert len(openings) == len({number % size for number in numbers})
    big = [text[:5] for number, text in texts.items() if number >= size**3]
    assert len(set(big)) == len(big), "numbers beyond the vocabulary are told apart by the next tokens"


@given(length=st.integers(1, 300), size=st.integers(5, 70_000), seed=st.integers(0, 2**32))
def test_random_ids_are_ordinary(length, size, seed):
    prompt = RandomPrompts(size).prompt(seed, length, np.random.default_rng(seed))
    assert len(prompt) == length
    assert min(prompt) >= FIRST_ORDINARY_ID and max(prompt) < size


def test_random_ids_use_the_whole_vocabulary():
    assert set(RandomPrompts(10).prompt(0, 500, np.random.default_rng(0))) == set(range(4, 10))


@pytest.mark.parametrize(("first", "changed"), [(3, 40), (1, 2)])
def test_the_length_of_one_prompt_does_not_change_the_next(prompts, first, changed):
    one, two = np.random.default_rng(9), np.random.default_rng(9)
    short, long = prompts.prompt(0, first, one), prompts.prompt(0, changed, two)
    assert long[:first] == short
    assert prompts.prompt(1, 6, one) == prompts.prompt(1, 6, two)


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"starts": TOKENS}, "no 'tokens'"),
        ({"tokens": TOKENS.astype(np.float32)}, "'tokens' is float32"),
        ({"tokens": TOKENS[:0]}, "'tokens' is int16"),
        ({"tokens": TOKENS.reshape(2, 15)}, r"\(2, 15\)"),
        ({"tokens": TOKENS % 4}, "some from 4 on"),
        ({"tokens": TOKENS - 110}, "ids from 0"),
    ],
)
def test_a_wrong_corpus_is_refused(tmp_path, arrays, named):
    path = tmp_path / "wrong.safetensors"
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, path)
    with pytest.raises(ValueError, match=named) as caught:
        CorpusPrompts(path)
    assert str(path) in str(caught.value)


def test_an_unreadable_corpus_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        CorpusPrompts(tmp_path / "none.safetensors")
    (tmp_path / "text.safetensors").write_text("hello, world, this is no tensor")
    with pytest.raises(ValueError, match="cannot be read"):
        CorpusPrompts(tmp_path / "text.safetensors")


def test_a_vocabulary_without_ordinary_ids_is_refused():
    with pytest.raises(ValueError, match="vocabulary of 4"):
        RandomPrompts(4)
