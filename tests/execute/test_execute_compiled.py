"""The compiled kernels against torch, and the decoder made of them against the model it came from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numba import njit
from tiny_models import BLOCK_SIZE, tiny
from torch import Tensor

from tunebatch.execute.torch.attention.base import AttentionBackend, KvCache, StepContext, Variant
from tunebatch.execute.torch.attention.compiled import Compiled
from tunebatch.execute.torch.attention.reference import Reference
from tunebatch.execute.torch.compiled import attend, linear, pointers, rows, threads
from tunebatch.execute.torch.compiled.panels import Panels
from tunebatch.execute.torch.load import ModelError, serve

# Rounding of one result; sums are made in float32 on both sides.
TOLERANCE = {torch.float32: 2e-5, torch.bfloat16: 2e-2}


@pytest.fixture(params=["one thread", "two threads", "no OpenMP"])
def num_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1 if request.param == "one thread" else 2)
    # Small tensors would otherwise always be served by one thread.
    monkeypatch.setattr(threads, "SERIAL_WORK", 0)
    if request.param == "no OpenMP":
        monkeypatch.setattr(threads, "gomp_parallel", lambda: None)
    yield
    torch.set_num_threads(before)


def test_exp_is_as_exact_as_float32() -> None:
    @njit
    def of_all(values: Any, out: Any) -> None:
        for i in range(len(values)):
            out[i] = pointers.exp(values[i])

    values = -np.concatenate([np.linspace(0, 1, 2001), np.geomspace(1e-6, 86, 4001)]).astype(np.float32)
    got = np.empty_like(values)
    of_all(values, got)
    error = np.abs(got / np.exp(values.astype(np.float64)) - 1)
    assert error[values > -2].max() < 5e-7 and error.max() < 1e-5
    of_all(np.full(3, -1e30, np.float32), got[:3])
    assert (got[:3] < 1e-37).all()


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("size", [5, 64, 160])
def test_rows(dtype: torch.dtype, size: int) -> None:
    torch.manual_seed(size)
    for count in (1, 7, 40):
        hidden, delta = (torch.randn(count, size).to(dtype) for _ in range(2))
        weight, out = torch.rand(size), torch.empty(count, size, dtype=dtype)
        total = hidden + delta
        rows.add_rms_norm(hidden, delta, weight, 1e-6, out)
        assert torch.equal(hidden, total)
        want = F.rms_norm(total.float(), (size,), weight, 1e-6)
        torch.testing.assert_close(out.float(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        rows.add_rms_norm(hidden, None, weight, 1e-6, out)
        torch.testing.assert_close(out.float(), want, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
        gate_up = (20 * torch.randn(count, 2 * size)).to(dtype)
        rows.silu_mul(gate_up, out)
        gate, up = gate_up.float().chunk(2, -1)
        torch.testing.assert_close(out.float(), F.silu(gate) * up, rtol=TOLERANCE[dtype], atol=1e-5)


def step_of(
    cache: KvCache, slices: list[tuple[int, int]], contexts: list[int], generator: torch.Generator
) -> StepContext:
    """A packed step: slices ``(start, tokens)``, then one token of each of the contexts."""
    lens = [start + count for start, count in slices] + contexts
    counts = [count for _, count in slices] + [1] * len(contexts)
    starts = [start for start, _ in slices] + [length - 1 for length in contexts]
    width = -(-max(lens) // cache.block_size)
    order = torch.randperm(cache.num_blocks, generator=generator)
    tables = order[: len(lens) * width].view(len(lens), width).contiguous()
    positions = torch.cat(
        [torch.arange(start, start + count) for start, count in zip(starts, counts, strict=True)]
    )
    owner = torch.repeat_interleave(torch.arange(len(lens)), torch.tensor(counts))
    ends = torch.tensor([0, *counts]).cumsum(0)
    return StepContext(
        cache=cache,
        positions=positions,
        query_start=ends,
        context_lens=torch.tensor(lens),
        block_tables=tables,
        cache_slots=tables[owner, positions // cache.block_size] * cache.block_size
        + positions % cache.block_size,
        slices=[(int(ends[i]), count, start) for i, (start, count) in enumerate(slices)],
        num_slice_tokens=sum(count for _, count in slices),
        max_context_len=max(lens),
        context_sum=sum(contexts),
    )


SIZES = ("kv_heads", "group", "dim", "value_dim", "block_size")
# A kernel takes seconds to compile, for each of these. Vectors of 4, 8 and 16 numbers, what several tokens do
# together and what one does are in those that always run, with both dtypes.
OTHERS = [
    (torch.bfloat16, 1, 3, 32, 16, 16),
    (torch.bfloat16, 3, 1, 16, 20, 8),
    (torch.float32, 1, 11, 72, 64, 12),
]


def fill(
    backend: AttentionBackend, step: StepContext, keys: list[Tensor], values: list[Tensor], group: int
) -> None:
    """Put what each sequence computed before into the cache, by the backend's own way of writing.

    What the queries are does not matter, but how many heads they have decides which kernel is compiled.
    """
    for index, (key, value) in enumerate(zip(keys, values, strict=True)):
        if not len(key):
            continue
        positions = torch.arange(len(key))
        table = step.block_tables[index : index + 1]
        size = step.cache.block_size
        prefill = StepContext(
            cache=step.cache,
            positions=positions,
            query_start=torch.tensor([0, len(key)]),
            context_lens=torch.tensor([len(key)]),
            block_tables=table,
            cache_slots=table[0, positions // size] * size + positions % size,
            slices=[(0, len(key), 0)],
            num_slice_tokens=len(key),
            max_context_len=len(key),
            context_sum=0,
        )
        query = key.repeat_interleave(group, dim=1)
        backend.attend(query, key.clone(), value, 0, Variant(1.0), prefill)


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize(("dtype", *SIZES), [
    *((dtype, 2, 2, 8, 8, 4) for dtype in TOLERANCE),
    (torch.float32, 1, 3, 32, 16, 16),
    (torch.float32, 3, 1, 16, 20, 8),
    (torch.bfloat16, 1, 11, 72, 64, 12),
    *(pytest.param(*one, marks=pytest.mark.slow) for one in OTHERS),
])  # fmt: skip
def test_attention_equals_the_reference_on_random_steps(
    dtype: torch.dtype, kv_heads: int, group: int, dim: int, value_dim: int, block_size: int
) -> None:
    generator = torch.Generator().manual_seed(dim)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator).to(dtype)

    def number(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for trial in range(12):
        slices = [(number(0, 1) * number(0, 300), number(1, 25)) for _ in range(number(0, 3))]
        contexts = [number(1, number(1, 700)) for _ in range(number(0 if slices else 1, 5))]
        variant = Variant(
            scale=0.3,
            window=number(1, 400) if trial % 3 == 1 else None,
            softcap=1.5 if trial % 4 == 2 else None,
            sinks=normal(kv_heads * group) if trial % 4 == 3 else None,
        )
        before = [start for start, _ in slices] + [length - 1 for length in contexts]
        old_keys = [normal(count, kv_heads, dim) for count in before]
        old_values = [normal(count, kv_heads, value_dim) for count in before]
        tokens = sum(count for _, count in slices) + len(contexts)
        query = normal(tokens, kv_heads * group, dim)
        key, value = normal(tokens, kv_heads, dim), normal(tokens, kv_heads, value_dim)
        seed = generator.initial_seed() + trial
        outputs = []
        for backend in (Reference(), Compiled()):
            cache = KvCache(8 * 700 // block_size, block_size, backend.new_pools)
            step = step_of(cache, slices, contexts, torch.Generator().manual_seed(seed))
            fill(backend, step, old_keys, old_values, group)
            outputs.append(backend.attend(query.clone(), key.clone(), value.clone(), 0, variant, step))
        # The reference rounds its weights to bfloat16 before it adds values up, the kernel does not.
        tolerance = 3 * TOLERANCE[dtype]
        torch.testing.assert_close(outputs[1].float(), outputs[0].float(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize(("group", "tiles"), [(4, 2), (8, 1)])
def test_tiles_of_one_token_are_not_compiled_twice(
    monkeypatch: pytest.MonkeyPatch, group: int, tiles: int
) -> None:
    made: list[int] = []
    monkeypatch.setattr(attend, "_attend", lambda *shape: made.append(shape[-1]))
    monkeypatch.setattr(attend, "Kernel", lambda *_: None)
    attend.attend_kernel.__wrapped__(torch.float32, 8, 8, group, 4)
    assert len(made) == tiles and made[-1] == 1


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(24, 12), (64, 96), (5, 33)])
def test_every_product_equals_torch(dtype: torch.dtype, with_bias: bool, outputs: int, inputs: int) -> None:
    torch.manual_seed(0)
    weight = torch.randn(outputs, inputs).to(dtype)
    bias = torch.randn(outputs).to(dtype) if with_bias else None
    # oneDNN packs bfloat16 only for processors that have instructions for it.
    assert linear.packs(dtype) == (dtype == torch.float32 or torch.ops.mkldnn._is_mkldnn_bf16_supported())
    for name, make in linear.PRODUCTS.items():
        if name == "packed" and not linear.packs(dtype):
            continue
        product = make(weight, bias)
        for count in (5, 1, 3, 8, 16, 9, 13, 2, 64, 65, 50, 300):
            x = torch.randn(count, inputs).to(dtype)
            if isinstance(product, Panels):  # what another product left behind must not count
                with torch.inference_mode():  # a model that loaded earlier may have made it in there
                    product._scratch.fill_(float("nan"))
            torch.testing.assert_close(product(x), F.linear(x, weight, bias), rtol=2e-2, atol=5e-2)


@pytest.mark.usefixtures("num_threads")
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize(("outputs", "inputs"), [(24, 12), (5, 33), (1000, 96)])
def test_the_highest_output_is_found_without_the_others(
    dtype: torch.dtype, with_bias: bool, outputs: int, inputs: int
) -> None:
    torch.manual_seed(0)
    # Whole numbers, so that no sum is rounded; every value below 0 in some rows.
    weight = torch.randint(-2, 3, (outputs, inputs)).to(dtype)
    bias = torch.full((outputs,), -4000.0).to(dtype) if with_bias else None
    product = Panels(weight, bias)
    for count in (64, 16, 1, 5, 2, 9, 3):
        x = torch.randint(-2, 3, (count, inputs)).to(dtype)
        expected = F.linear(x.float(), weight.float(), None if bias is None else bias.float())
        assert product.highest(x).tolist() == expected.numpy().argmax(-1).tolist()


def test_the_highest_of_equal_outputs_is_the_first() -> None:
    # With two threads the last is another thread's.
    weight = torch.zeros(256, 32)
    weight[[3, 5, 40, 200]] = 1.0
    assert Panels(weight, None).highest(torch.ones(2, 32)).tolist() == [3, 3]
    assert Panels(-torch.ones(256, 32), None).highest(torch.ones(1, 32)).tolist() == [0]


@pytest.mark.parametrize("rows_", [1, 16, 17, 64, 65])
@pytest.mark.parametrize("few", ["panels", "plain"])
def test_linear_finds_the_highest_whatever_product_it_took(
    monkeypatch: pytest.MonkeyPatch, few: str, rows_: int
) -> None:
    monkeypatch.setattr(linear, "_chosen", lambda *_: [few] * 7 + ["plain"] * 2)
    torch.manual_seed(0)
    weight, x = torch.randn(70, 32), torch.randn(rows_, 32)
    assert linear.Linear(weight).highest(x).tolist() == F.linear(x, weight).argmax(-1).tolist()


def test_linear_takes_the_product_that_was_fastest_at_as_many_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = ["plain", "plain", "panels", "panels", "packed", "packed", "packed", "panels", "transposed"]
    monkeypatch.setattr(linear, "_chosen", lambda *_: chosen)
    taken: list[str] = []

    def making(name: str) -> Any:
        return lambda weight, bias: lambda x: taken.append(name) or x

    monkeypatch.setattr(linear, "PRODUCTS", {name: making(name) for name in linear.PRODUCTS})
    product = linear.Linear(torch.ones(2, 2))
    for rows_ in (1, 2, 3, 8, 9, 64, 65, 129, 5000):
        product(torch.ones(rows_, 2))
    assert taken == [
        "plain",
        "plain",
        "panels",
        "panels",
        "packed",
        "packed",
        "panels",
        "transposed",
        "transposed",
    ]


def test_a_copy_of_the_weight_must_be_clearly_faster() -> None:
    times = [
        {"plain": 10.0, "transposed": 9.9, "packed": 20.0},  # not worth a copy
        {"plain": 10.0, "transposed": 5.2, "packed": 5.0},  # nor a second one
        {"plain": 10.0, "transposed": 4.0, "packed": 5.0},
        {"plain": 10.0, "transposed": 4.0, "packed": 2.0},  # this one is
        {"transposed": 4.0, "packed": 4.5},
    ]
    assert linear._few_copies(times) == ["plain", "transposed", "transposed", "packed", "transposed"]


def test_a_hopeless_product_is_not_tried_with_more_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, set[str]]] = []

    def times(products: dict[str, Any], x: torch.Tensor) -> dict[str, float]:
        tried.append((len(x), set(products)))
        slow = {"plain": 6.0, "packed": 6.0 if len(x) == 4 else 4.0}
        return {name: slow.get(name, 1.0) for name in products}

    monkeypatch.setattr(linear, "_times", times)
    linear._chosen.__wrapped__((48, 32), torch.float32, 1)
    left = {"transposed", "panels"}
    assert tried == [
        (1, set(linear.PRODUCTS)),
        *((rows_, {*left, "packed"}) for rows_ in (2, 4)),
        *((rows_, left) for rows_ in linear.ROWS[3:]),
    ]


def test_linear_copies_nothing_where_memory_is_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "_chosen", lambda *_: pytest.fail("measured a product that needs a copy"))
    weight = torch.ones(3, 2)
    assert torch.equal(linear.Linear(weight, copy=False)(torch.ones(1, 2)), torch.full((1, 3), 2.0))


def llama() -> Any:
    return tiny(attention_bias=True)


def test_without_the_packed_product_a_model_is_served_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(linear, "packs", lambda dtype: False)
    served = serve(llama(), name="tiny", block_size=BLOCK_SIZE)
    assert served.model_info["forward"] == "compiled" and served.model_info["self_check_error"] < 1e-5


def test_the_model_itself_computes_as_before() -> None:
    model, ids = llama(), torch.arange(5, 40)[None]
    with torch.no_grad():
        model.set_attn_implementation("eager")
        before = model(ids).logits
        serve(model, name="tiny", block_size=BLOCK_SIZE)
        model.set_attn_implementation("eager")
        torch.testing.assert_close(model(ids).logits, before, rtol=1e-5, atol=1e-6)


def test_merged_projections_weigh_nothing() -> None:
    model = llama()
    serve(model, name="tiny", block_size=BLOCK_SIZE)
    attention = model.model.layers[0].self_attn
    storages = {p.weight.untyped_storage().data_ptr() for p in (attention.q_proj, attention.v_proj)}
    assert len(storages) == 1


def test_what_the_kernels_cannot_serve_goes_to_another_backend() -> None:
    assert serve(llama(), name="tiny", block_size=5).model_info["attention_backend"] == "packed"
    assert serve(llama().half(), name="tiny").model_info["attention_backend"] == "packed"
    with pytest.raises(ModelError, match="block size 5 is no multiple of 4"):
        serve(llama(), name="tiny", block_size=5, backend="compiled")
