"""Merged projections compute what the separate ones compute, hold no weight twice, and keep nothing."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from test_execute_features import serve_all
from test_execute_tokens import ARCHITECTURES, BLOCK_SIZE, expected, network, requests
from tiny_models import tiny
from torch import nn

from tunebatch.execute.torch import forward, selfcheck
from tunebatch.execute.torch.executor import TorchExecutor
from tunebatch.execute.torch.load import serve
from tunebatch.execute.torch.merged import MergedProjection, merge, pays, take_apart, watched

# Products of each of the two layers that are merged: of queries, keys and values, and of gates.
MERGED = dict.fromkeys(ARCHITECTURES, 2) | {
    "mixtral": 1,
    "opt": 1,
    "gpt_oss": 1,
    "phi3": 0,
    "gpt2": 0,
    "gpt_neox": 0,
}


@pytest.fixture
def on_a_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(forward, "pays", lambda *_: True)


def served(model: Any, name: str = "tiny", num_blocks: int = 64) -> TorchExecutor:
    model.set_attn_implementation("eager")
    return serve(
        model, name=name, backend="reference", block_size=BLOCK_SIZE, num_blocks=num_blocks, max_slots=8
    )


def groups(model: nn.Module) -> list[list[nn.Linear]]:
    with watched(model) as found:
        selfcheck.own_logits(model, selfcheck.prompts(99, 128))
    return found


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_greedy_tokens_equal_generate(name: str, on_a_cpu: None) -> None:
    want = expected(name)
    model = network(name)
    model.set_attn_implementation("eager")
    take_apart(model)
    texts = selfcheck.prompts(199, 256)
    own = selfcheck.own_logits(model, texts)
    executor = served(model, name, num_blocks=20)
    assert executor.model_info["merged_projections"] == 2 * MERGED[name]
    assert selfcheck.worst_error(executor, texts, own) < 1e-5
    record = serve_all(executor, "mixed", requests(199))
    assert {one.id: one.output for one in record.requests} == want


def test_one_product_is_slices_of_the_same_numbers() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(16, out) for out in (8, 4, 12)]
    x = torch.randn(1, 5, 16)
    whole = torch.cat([layer.weight for layer in layers]), torch.cat([layer.bias for layer in layers])
    want = nn.functional.linear(x, *whole).split([8, 4, 12], -1)
    merge([layers])
    with torch.inference_mode():
        for index in (1, 0, 2):  # whoever is first
            assert torch.equal(layers[index](x), want[index])


def test_no_weight_is_held_twice_and_names_stay() -> None:
    model = tiny("qwen2")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    merge(groups(model))
    after = model.state_dict()
    assert list(after) == list(before) and all(torch.equal(after[name], before[name]) for name in before)
    attention = model.model.layers[0].self_attn
    parts = [attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight]
    (storage,) = {part.untyped_storage().data_ptr() for part in parts}
    assert parts[0].data_ptr() == storage
    assert parts[0].untyped_storage().nbytes() == 4 * sum(part.numel() for part in parts)


def test_nothing_is_stale_and_nothing_is_kept() -> None:
    torch.manual_seed(0)
    layers = [nn.Linear(4, 4, bias=False) for _ in range(2)]
    weights = [layer.weight.detach().clone() for layer in layers]
    (merged,) = merge([layers])
    x = torch.randn(3, 4)
    layers[0](x)
    # The other part was never asked for; another input, however alike, is computed anew.
    y = x.clone().mul_(2)
    torch.testing.assert_close(layers[1](y), y @ weights[1].T)
    torch.testing.assert_close(layers[1](x), x @ weights[1].T)
    torch.testing.assert_close(layers[1](x.mul_(3)), x @ weights[1].T)
    torch.testing.assert_close(layers[0](x), x @ weights[0].T)
    assert merged._input is None and not merged._parts
    layers[0](x)
    merged.forget()
    assert merged._input is None and not merged._parts


def test_a_step_that_fails_leaves_nothing(on_a_cpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny()
    executor = served(model)
    merged: list[MergedProjection] = []
    slice_of = MergedProjection.slice_of

    def fails(self: MergedProjection, index: int, x: torch.Tensor) -> torch.Tensor:
        merged.append(self)
        slice_of(self, index, x)
        raise torch.OutOfMemoryError("CUDA out of memory")

    for layer in model.modules():
        if "forward" in layer.__dict__:
            partly = layer.forward
            monkeypatch.setattr(
                layer, "forward", lambda x, one=partly: fails(one.func.__self__, *one.args, x)
            )
    texts = selfcheck.prompts(99, 128)
    with pytest.raises(torch.OutOfMemoryError):
        selfcheck.worst_error(executor, texts, [])
    assert len(merged) == 1 and merged[0]._input is None and not merged[0]._parts


def test_what_is_more_than_a_linear_layer_is_left_alone() -> None:
    class Adapted(nn.Linear):
        pass

    model = tiny()
    first, second = (layer.self_attn for layer in model.model.layers)
    first.q_proj.__class__ = Adapted
    second.v_proj.register_forward_hook(lambda *_: None)
    model.model.layers[1].mlp.up_proj.to(torch.float64)
    model.model.layers[1].mlp.up_proj.register_forward_pre_hook(lambda _, x: (x[0].double(),))
    model.model.layers[1].mlp.up_proj.register_forward_hook(lambda _, __, y: y.float())
    names = {layer: name for name, layer in model.named_modules()}
    found = [[names[layer].removeprefix("model.layers.") for layer in group] for group in groups(model)]
    assert found == [
        ["0.self_attn.k_proj", "0.self_attn.v_proj"],
        ["0.mlp.gate_proj", "0.mlp.up_proj"],
        ["1.self_attn.q_proj", "1.self_attn.k_proj"],
    ]


def test_layers_of_other_inputs_or_other_dtypes_are_not_merged() -> None:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c, self.often = (nn.Linear(4, 4) for _ in range(4))
            self.bare = nn.Linear(4, 4, bias=False)
            self.tied = nn.Linear(4, 4)
            self.other = nn.Embedding(4, 4)
            self.other.weight = self.tied.weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            sums = self.a(x) + self.b(x) + self.c(x.clone()) + self.bare(x) + self.tied(x)
            return sums + self.often(x) + self.often(x)

    model = Model()
    with watched(model) as found:
        for _ in range(2):
            model(torch.randn(2, 4))
    assert found == [[model.a, model.b]]
    assert not model._forward_pre_hooks and not model.a._forward_pre_hooks


def test_it_pays_where_it_was_measured_to() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pays(cuda, torch.float32) and pays(cpu, torch.bfloat16) and not pays(cpu, torch.float32)


def test_serving_a_model_again_begins_with_its_own_layers(on_a_cpu: None) -> None:
    model = tiny()
    assert served(model).model_info["merged_projections"] == 4
    assert served(model).model_info["merged_projections"] == 4
    take_apart(model)
    assert not any("forward" in layer.__dict__ for layer in model.modules())


def test_where_merging_is_wrong_the_model_is_served_without(
    on_a_cpu: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = MergedProjection.slice_of

    def wrong(self: MergedProjection, index: int, x: torch.Tensor) -> torch.Tensor:
        return right(self, index, x) + 1

    monkeypatch.setattr(MergedProjection, "slice_of", wrong)
    executor = served(tiny())
    assert executor.model_info["merged_projections"] == 0
    assert executor.model_info["self_check_error"] < 1e-5
