"""Executor on PyTorch: any Hugging Face decoder on a paged KV cache."""
