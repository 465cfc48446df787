"""The bundled pair is whole, consistent, able to write Python-like text, and the draft fits the target."""

from __future__ import annotations

import json
from functools import cache

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from tunebatch.models import bundled_corpus, bundled_draft, bundled_target, corpus, pair
from tunebatch.models.acceptance import greedy, heldout_loss, measure_acceptance, walk_rounds

FOLDERS = {"target": bundled_target(), "draft": bundled_draft()}
SNIPPET = 'def add(a, b):\n    """Sum."""\n    return {"k": a + b}  # naïve\n'


@cache
def model(name):
    return pair.load_float32(FOLDERS[name])


@cache
def documents():
    return corpus.load_corpus(bundled_corpus())


@cache
def loss(name, window):
    return heldout_loss(model(name), documents(), window, 8192)


def config(name):
    return json.loads((FOLDERS[name] / "config.json").read_text())


def test_everything_is_there_and_small():
    root = bundled_target().parent
    for folder in FOLDERS.values():
        for name in ("config.json", "generation_config.json", "model.safetensors", "tokenizer.json"):
            assert (folder / name).is_file()
    assert (root / "MODEL_CARD.md").is_file()
    assert "Python Software Foundation" in (root / "LICENSE.corpus").read_text()
    assert sum(p.stat().st_size for p in root.rglob("*") if p.is_file()) < 20e6


def test_configurations_agree():
    target, draft = config("target"), config("draft")
    assert target["vocab_size"] == draft["vocab_size"] == corpus.VOCAB_SIZE
    assert min(target["max_position_embeddings"], draft["max_position_embeddings"]) >= 2048
    assert target["num_key_value_heads"] < target["num_attention_heads"]
    assert draft["num_hidden_layers"] * 6 <= target["num_hidden_layers"]
    assert target["eos_token_id"] == draft["eos_token_id"] == corpus.EOS_ID


@pytest.mark.parametrize("name", FOLDERS)
def test_tokenizer_round_trip(name):
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS[name])
    assert len(tokenizer) == corpus.VOCAB_SIZE
    assert tokenizer.eos_token_id == corpus.EOS_ID
    assert tokenizer.decode(tokenizer(SNIPPET)["input_ids"]) == SNIPPET


def test_corpus_is_documents_of_known_tokens():
    tokens, starts = documents().tokens, documents().starts
    assert tokens.min() >= 0
    assert tokens.max() < corpus.VOCAB_SIZE
    assert starts[0] == 0
    assert (tokens[starts[1:] - 1] == corpus.EOS_ID).all()
    assert tokens[-1] == corpus.EOS_ID


@pytest.mark.parametrize("name", FOLDERS)
def test_writes_ascii_and_predicts_held_out_text(name):
    tokenizer = AutoTokenizer.from_pretrained(FOLDERS[name])
    prompt = torch.tensor([tokenizer("import os\n\ndef ")["input_ids"]])
    text = tokenizer.decode(greedy(model(name), prompt, 24).ids[0])
    assert text.isascii()
    assert "(" in text
    assert loss(name, 512) < 4.5


def test_target_holds_up_at_far_positions():
    assert loss("target", 2048) < loss("target", 512) + 0.2


def test_draft_is_often_right():
    (one,) = measure_acceptance(model("target"), model("draft"), documents(), prompts=16, new=32, ks=(1,))
    assert one.per_position[0] > 0.4


def test_rounds_are_walked_as_an_engine_walks_them():
    row = np.array([True, True, False, True, False, False])
    measured = walk_rounds([row], 2)
    # Rounds: keep 2 and add one; keep 1 of 2 and add one; keep 0 of the last one.
    assert (measured.rounds, measured.drafted_at, measured.accepted_at) == (3, [3, 2], [2, 1])
