"""Speculative decoding: who proposes tokens, how many, and what became of them."""
