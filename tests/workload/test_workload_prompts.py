"""Prompts have the wanted length, come from the corpus, and do not depend on each other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import save_file

from tunebatch.workload.prompts import FIRST_ORDINARY_ID, CorpusPrompts, RandomPrompts

TOKENS = np.arange(100, 130, dtype=np.int16)
STARTS = np.array([0, 7, 20], np.int32)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "corpus.safetensors"
    save_file({"tokens": TOKENS, "starts": STARTS}, path)
    return CorpusPrompts(path)


@pytest.fixture(scope="module", params=["corpus", "random"])
def prompts(request, corpus):
    return corpus if request.param == "corpus" else RandomPrompts(50)


def test_a_window_starts_at_a_document_and_wraps_around(corpus):
    rng = np.random.default_rng(0)
    begins = set()
    for length in (1, 5, 30, 31, 95):
        for _ in range(20):
            prompt = corpus.prompt(length, rng)
            begins.add(prompt[0])
            assert len(prompt) == length
            assert prompt == tuple(100 + (prompt[0] - 100 + i) % 30 for i in range(length))
            assert all(type(token) is int for token in prompt)
    assert begins == {100, 107, 120}


@given(length=st.integers(1, 300), size=st.integers(5, 70_000), seed=st.integers(0, 2**32))
def test_random_ids_are_ordinary(length, size, seed):
    prompt = RandomPrompts(size).prompt(length, np.random.default_rng(seed))
    assert len(prompt) == length
    assert min(prompt) >= FIRST_ORDINARY_ID and max(prompt) < size


def test_random_ids_use_the_whole_vocabulary():
    assert set(RandomPrompts(10).prompt(500, np.random.default_rng(0))) == set(range(4, 10))


@pytest.mark.parametrize(("first", "changed"), [(3, 40), (1, 2)])
def test_the_length_of_one_prompt_does_not_change_the_next(prompts, first, changed):
    one, two = np.random.default_rng(9), np.random.default_rng(9)
    short, long = prompts.prompt(first, one), prompts.prompt(changed, two)
    assert long[:first] == short
    assert prompts.prompt(6, one) == prompts.prompt(6, two)


@pytest.mark.parametrize(
    ("arrays", "named"),
    [
        ({"tokens": TOKENS}, "no 'starts'"),
        ({"tokens": TOKENS, "starts": np.array([30], np.int32)}, "starts at 30, beyond the 30"),
        ({"tokens": TOKENS.astype(np.float32), "starts": STARTS}, "'tokens' is float32"),
        ({"tokens": TOKENS, "starts": STARTS[:0]}, "'starts' is int32"),
        ({"tokens": TOKENS.reshape(2, 15), "starts": STARTS}, r"\(2, 15\)"),
        ({"tokens": -TOKENS, "starts": STARTS}, "from 0"),
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
