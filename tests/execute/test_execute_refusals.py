"""What cannot be served is refused in one line, by name."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from tiny_models import BLOCK_SIZE, tiny

from tunebatch.engine.request import Sampling
from tunebatch.engine.strategies import strategy
from tunebatch.execute.torch.load import ModelError, load_executor, refuse_unservable, serve
from tunebatch.execute.torch.same_tokens import TokenMismatchError, check_same_tokens
from tunebatch.execute.torch.sampler import sample


@pytest.mark.parametrize("kind", ["t5", "mamba", "jamba", "lfm2", "llava"])
def test_unservable_architectures_are_named(kind: str) -> None:
    with pytest.raises(ModelError, match=kind) as error:
        refuse_unservable(transformers.AutoConfig.for_model(kind), "some/model")
    assert "\n" not in str(error.value)


def test_a_path_that_does_not_exist(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="no such folder"):
        load_executor(str(tmp_path / "nowhere"), device="cpu")


def test_a_folder_without_a_model(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_executor(str(tmp_path), device="cpu")


def test_broken_weights_are_one_line(tmp_path: Path) -> None:
    tiny().save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"not weights")
    with pytest.raises(ModelError, match="cannot be loaded") as error:
        load_executor(str(tmp_path), device="cpu")
    assert "\n" not in str(error.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_no_gpu() -> None:
    with pytest.raises(ModelError, match="no CUDA device"):
        load_executor("bundled", device="cuda")


def test_a_model_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from tunebatch.execute.torch.attention import reference

    monkeypatch.setattr(reference, "visible", lambda q, k, w, d: torch.ones(q, k, dtype=torch.bool, device=d))
    with pytest.raises(ModelError, match="differs from its own forward"):
        serve(tiny(), name="tiny", backend="reference")


def test_a_token_mismatch_names_strategy_request_and_position(monkeypatch: pytest.MonkeyPatch) -> None:
    executor = serve(tiny(), name="tiny", block_size=BLOCK_SIZE)
    from tunebatch.execute.torch import executor as module

    monkeypatch.setattr(module, "sample", lambda logits, *_: (logits.argmax(-1) + 1) % 99)
    with pytest.raises(TokenMismatchError, match=r"strategy static .* request 0, output token 0, logit gap"):
        check_same_tokens(executor, [strategy("static")])


def test_sampling_follows_the_distribution_and_the_seed() -> None:
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.15, 0.05]])).expand(4000, 4)
    draws = sample(logits.clone(), [(i, Sampling(temperature=1.0, seed=i), 3) for i in range(4000)])
    shares = torch.bincount(draws, minlength=4) / 4000
    assert torch.allclose(shares, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.03)
    again = sample(logits[:10].clone(), [(i, Sampling(temperature=1.0, seed=i), 3) for i in range(10)])
    assert again.tolist() == draws[:10].tolist()
    top2 = sample(logits.clone(), [(i, Sampling(temperature=1.0, top_k=2, seed=i), 3) for i in range(4000)])
    assert set(top2.tolist()) == {0, 1}
    nucleus = sample(
        logits.clone(), [(i, Sampling(temperature=1.0, top_p=0.6, seed=i), 3) for i in range(4000)]
    )
    assert set(nucleus.tolist()) == {0, 1}
    assert sample(logits[:3].clone(), []).tolist() == [0, 0, 0]
