"""The model's own tokenizer, for traces whose prompts are words."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any


class TokenizerError(ValueError):
    """The model has no tokenizer that can be read; one line."""


@functools.cache
def text_to_ids(model: str) -> Callable[[str], tuple[int, ...]]:
    """A function from a text to the ids that the model was trained on.

    The tokenizer is read when the function is first called, so that traces without words cost nothing and
    need none; there is one for each model, and it keeps what it has seen: a trace is read once to be checked
    and again for every seed.

    Raises:
        TokenizerError: Of the function: the model has no tokenizer, or none that can be read.
        UnicodeEncodeError: Of the function: half a surrogate pair, which JSON lets through.
    """
    encode = functools.cache(lambda: _encoder(model))

    @functools.cache
    def ids(text: str) -> tuple[int, ...]:
        text.encode()
        return encode()(text)

    return ids


def _encoder(model: str) -> Callable[[str], tuple[int, ...]]:
    from tunebatch.models.named_shape import named_shape

    if named_shape(model) is not None:
        raise TokenizerError(
            f"{model} is a shape with random weights, which has no tokenizer: give prompts by their lengths "
            "or as token ids, or a model with weights"
        )
    folder = _folder(model)
    try:
        if (folder / "tokenizer.json").is_file():
            return _from_file(folder / "tokenizer.json")
        return _from_transformers(str(folder) if folder.is_dir() else model)
    # Not only OSError and ValueError: tokenizers raises Exception itself, transformers also ImportError.
    except Exception as error:
        why = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise TokenizerError(f"model {model} has no tokenizer that can be read ({why})") from error


def _folder(model: str) -> Path:
    if model == "bundled":
        from tunebatch.models import bundled_target

        return bundled_target()
    return Path(model).expanduser()


def _from_file(path: Path) -> Callable[[str], tuple[int, ...]]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path))
    # What a file says about batches for training would cut or fill prompts.
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return lambda text: tuple(tokenizer.encode(text).ids)


def _from_transformers(model: str) -> Callable[[str], tuple[int, ...]]:
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    with contextlib.redirect_stderr(io.StringIO()):
        from transformers import AutoTokenizer, logging

        logging.set_verbosity_error()
        from tunebatch.models.hub import hub_answers

        at_hand = {} if Path(model).is_dir() else {"local_files_only": not hub_answers()}
        tokenizer: Any = AutoTokenizer.from_pretrained(model, trust_remote_code=False, **at_hand)
    return lambda text: tuple(tokenizer(text, verbose=False)["input_ids"])
