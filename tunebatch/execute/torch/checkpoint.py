"""Find and read a checkpoint in Hugging Face format: a local folder, or one of the hub's."""

from __future__ import annotations

import contextlib
import io
import logging
import os
from pathlib import Path
from typing import Any

from tunebatch.execute.torch.model_error import ModelError
from tunebatch.models.hub import silence_told
from tunebatch.models.named_shape import nearest_shape


def locate(model: str) -> tuple[str, str]:
    """Where a model is, as transformers takes it, and its name for the user.

    Raises:
        ModelError: There is no such folder, or no model in it.
    """
    if model == "bundled":
        from tunebatch.models import bundled_target

        return str(bundled_target()), "bundled"
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelError(f"{model}: no config.json in this folder; is it a Hugging Face model?")
        return str(path), path.name
    if path.is_absolute() or model.startswith((".", "~")):
        raise ModelError(
            f"{model}: no such folder; give a local path, a hub id (owner/name), 'bundled' or a named shape"
        )
    if model.count("/") != 1:
        raise ModelError(
            f"{model}: no such folder or named shape; did you mean {nearest_shape(model)!r}? A local path, a "
            "hub id (owner/name) or 'bundled' will do too"
        )
    return model, model


def read_config(path: str, name: str, silent_hub: bool) -> Any:
    """The config of a checkpoint.

    Args:
        silent_hub: The hub does not answer, so that only what is on the disk counts.

    Raises:
        ModelError: It cannot be read.
    """
    from transformers import AutoConfig

    with _one_line(name, silent_hub):
        # Said in so many words, as transformers else asks on the terminal whether to run what it was sent.
        return AutoConfig.from_pretrained(path, local_files_only=silent_hub, trust_remote_code=False)


def read_network(path: str, name: str, dtype: Any, silent_hub: bool) -> Any:
    """The model of a checkpoint, with its own attention, on the CPU; safetensors only.

    Raises:
        ModelError: It cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    with _one_line(name, silent_hub):
        network, loading = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            attn_implementation="eager",
            local_files_only=silent_hub,
            trust_remote_code=False,
            output_loading_info=True,
        )
    missing = sorted(loading["missing_keys"])
    if missing:
        # transformers makes them up and only logs it; what such a model says would be checked against itself.
        many = f"{len(missing)} tensors are" if len(missing) > 1 else "a tensor is"
        raise ModelError(
            f"{name}: {many} missing from its weights: {missing[0]}{', ...' * (len(missing) > 1)}"
        )
    return network


class _one_line(contextlib.AbstractContextManager[None]):  # noqa: N801 - reads as a statement
    """Turn what transformers says about a model it cannot load into one line."""

    def __init__(self, name: str, silent_hub: bool) -> None:
        self._name = name
        self._silent_hub = silent_hub
        self._silence = contextlib.redirect_stderr(io.StringIO())

    def __enter__(self) -> None:
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
        for library in ("transformers", "huggingface_hub"):  # which tells of each try to reach the hub
            logging.getLogger(library).setLevel(logging.ERROR)
        self._silence.__enter__()

    def __exit__(self, kind: Any, error: Any, trace: Any) -> None:
        self._silence.__exit__(kind, error, trace)
        # Not only OSError: safetensors, tokenizers and model code each raise classes of their own.
        if isinstance(error, Exception):
            if self._silent_hub:
                raise ModelError(silence_told(self._name)) from error
            first = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise ModelError(f"{self._name}: cannot be loaded: {first}") from error
