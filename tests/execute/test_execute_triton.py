"""The Triton kernels against the reference on random steps, in Triton's interpreter where there is no GPU."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from tunebatch.execute.torch.attention.base import AttentionBackend, KvCache, StepContext, Variant
from tunebatch.execute.torch.attention.reference import Reference

pytest.importorskip("triton", reason="Triton is not installed: its kernels cannot be tested")
from triton.runtime import interpreter

from tunebatch.execute.torch.attention.launch import Kind, launches
from tunebatch.execute.torch.attention.triton import Triton

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
# Of results of size 1: what rounding of weights and of the result explains; sums are made in float32.
TOLERANCE = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}


@pytest.fixture(autouse=True)
def bfloat16_products(monkeypatch: pytest.MonkeyPatch) -> None:
    """The interpreter keeps bfloat16 as 16-bit integers, and multiplies those: give it the numbers."""
    builder = interpreter.InterpreterBuilder
    create_dot = builder.create_dot

    def numbers(part: Any) -> Any:
        if part.dtype.scalar.name != "bf16":
            return part
        widened = (part.data.astype(np.uint32) << 16).view(np.float32)
        return interpreter.TensorHandle(widened, interpreter.tl.float32)

    monkeypatch.setattr(
        builder, "create_dot", lambda self, a, b, *rest: create_dot(self, numbers(a), numbers(b), *rest)
    )


@dataclasses.dataclass
class Case:
    """A step, with what its sequences computed before.

    Attributes:
        counts: New tokens of each sequence, slices first; ``starts``: tokens that are in the cache before.
        padding: Sequences of one token each at the end that only pad.
    """

    dtype: torch.dtype
    kv_heads: int
    group: int
    dim: int
    value_dim: int
    block_size: int
    counts: list[int]
    starts: list[int]
    num_slices: int
    padding: int
    variant: Variant
    processors: int
    seed: int

    @property
    def num_tokens(self) -> int:
        return sum(self.counts) + self.padding

    def tensors(self) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values, each a view as models make them: heads before tokens."""
        generator = torch.Generator().manual_seed(self.seed)
        return tuple(
            torch.randn(heads, self.num_tokens, dim, generator=generator).to(self.dtype).transpose(0, 1)
            for heads, dim in (
                (self.kv_heads * self.group, self.dim),
                (self.kv_heads, self.dim),
                (self.kv_heads, self.value_dim),
            )
        )

    def step(self, backend: AttentionBackend, dtype: torch.dtype) -> StepContext:
        """On a cache that holds random numbers where a sequence has tokens, and NaN everywhere else."""
        generator = torch.Generator().manual_seed(self.seed + 1)
        lens = [start + count for start, count in zip(self.starts, self.counts, strict=True)]
        width = -(-max(lens) // self.block_size) + self.seed % 3
        num_blocks = len(lens) * width + 1
        # Block 0 is no sequence's: what padding rows would read.
        tables = torch.randperm(num_blocks - 1, generator=generator).view(len(lens), width) + 1
        pools = [
            torch.full((num_blocks, self.block_size, self.kv_heads, dim), torch.nan).to(dtype)
            for dim in (self.dim, self.value_dim)
        ]
        slots: list[int] = []
        for table, start, length in zip(tables, self.starts, lens, strict=True):
            place = torch.arange(length)
            place = table[place // self.block_size] * self.block_size + place % self.block_size
            for pool in pools:
                flat = pool.view(-1, *pool.shape[2:])
                numbers = torch.randn(start, *flat.shape[1:], generator=generator)
                flat[place[:start]] = numbers.to(self.dtype).to(dtype)
            slots += place[start:].tolist()
        ends = np.cumsum([0, *self.counts, *[1] * self.padding])
        cache = KvCache(num_blocks, self.block_size, backend.new_pools)
        cache.layers[0] = (pools[0].to(DEVICE), pools[1].to(DEVICE))
        return StepContext(
            cache=cache,
            positions=torch.zeros(0),
            query_start=torch.tensor(ends).to(DEVICE),
            context_lens=torch.tensor(lens + [0] * self.padding).to(DEVICE),
            block_tables=torch.cat([tables, tables.new_zeros(self.padding, width)]).to(DEVICE),
            cache_slots=torch.tensor(slots + [-1] * self.padding).to(DEVICE),
            slices=[(int(ends[i]), self.counts[i], self.starts[i]) for i in range(self.num_slices)],
            num_slice_tokens=int(ends[self.num_slices]),
            max_context_len=max(lens),
            context_sum=sum(lens),
        )


def random_case(seed: int) -> Case:
    """Prompts, chunks, drafts and decodes together, in the measure in which they are slow to interpret."""
    draw = random.Random(seed)
    dtype = draw.choice(list(TOLERANCE))
    group = draw.choice([1, 1, 2, 3, 4, 5, 7, 8, 12, 20])
    dim = draw.choice([64, 64, 80, 96, 112, 128, 256])
    block_size = draw.choice([16, 16, 32, 64, 128, 256, 12])
    counts, starts = [], []
    for _ in range(draw.choice([0, 1, 1, 2, 3])):
        # A prompt, a later chunk of one, or a token with drafts.
        counts.append(draw.choice([draw.randint(1, 90), draw.randint(2, 6), 128 // group + 1]))
        starts.append(draw.choice([0, draw.randint(1, 400), block_size, draw.randint(1, 20)]))
    num_slices = len(counts)
    for _ in range(draw.randint(0 if counts else 1, 5)):
        counts.append(1)
        starts.append(draw.choice([0, draw.randint(1, 30), draw.randint(1, 500), 2 * block_size - 1]))
    kv_heads = draw.choice([1, 2, 3])
    sinks = draw.choice([None, None, torch.randn(kv_heads * group, generator=torch.manual_seed(seed))])
    return Case(
        dtype=dtype,
        kv_heads=kv_heads,
        group=group,
        dim=dim,
        value_dim=draw.choice([dim, dim, dim, 64]),
        block_size=block_size,
        counts=counts,
        starts=starts,
        num_slices=num_slices,
        padding=draw.choice([0, 0, 1, 3]),
        variant=Variant(
            scale=draw.choice([0.125, 0.3]),
            window=draw.choice([None, None, 1, 17, 128, draw.randint(2, 600)]),
            softcap=draw.choice([None, None, 3.0, 30.0]),
            sinks=None if sinks is None else sinks.to(dtype),
        ),
        processors=draw.choice([1, 16, 132]),
        seed=seed,
    )


def attended(case: Case, backend: AttentionBackend, dtype: torch.dtype) -> tuple[Tensor, StepContext]:
    step = case.step(backend, dtype)
    query, key, value = (part.to(DEVICE, dtype) for part in case.tensors())
    variant = case.variant
    if variant.sinks is not None:
        variant = dataclasses.replace(variant, sinks=variant.sinks.to(DEVICE, dtype))
    if isinstance(backend, Reference) and case.padding:
        real = case.num_tokens - case.padding
        step.cache_slots, query, key, value = step.cache_slots[:real], query[:real], key[:real], value[:real]
        step.context_lens = step.context_lens[: len(case.counts)]
    return backend.attend(query, key, value, 0, variant, step).float().cpu(), step


def check(case: Case) -> None:
    """Outputs as exact as the type allows, pools equal to the last bit, and padding without a trace."""
    got, step = attended(case, Triton(case.processors), case.dtype)
    want, exact = attended(case, Reference(), torch.float32)
    real = len(want)
    torch.testing.assert_close(got[:real], want, rtol=TOLERANCE[case.dtype], atol=TOLERANCE[case.dtype])
    assert (got[real:] == 0).all() and len(got) == real + case.padding
    for pool, expected in zip(step.cache.layers[0], exact.cache.layers[0], strict=True):
        assert torch.equal(pool.float().nan_to_num(123.0), expected.nan_to_num(123.0))


@pytest.mark.parametrize("seed", range(4, 12))
def test_a_random_step_equals_the_reference(seed: int) -> None:
    check(random_case(seed))


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(12, 312))
def test_hundreds_of_random_steps_equal_the_reference(seed: int) -> None:
    check(random_case(seed))


def test_random_steps_are_of_all_sorts() -> None:
    """Guards the comparisons above."""
    cases = [random_case(seed) for seed in range(12, 312)]
    assert {case.dtype for case in cases} == set(TOLERANCE)
    assert {64, 80, 96, 112, 128, 256} == {case.dim for case in cases}
    assert {16, 32, 64, 128, 256} <= {case.block_size for case in cases}
    for has in (
        lambda case: case.padding,
        lambda case: case.variant.window,
        lambda case: case.variant.softcap,
        lambda case: case.variant.sinks is not None,
        lambda case: case.num_slices == 0,
        lambda case: case.num_slices == len(case.counts),
        lambda case: 0 < case.num_slices < len(case.counts),
        lambda case: case.group > 1 and case.dim != case.value_dim,
        lambda case: max(case.counts) * case.group > 128,
    ):
        assert sum(bool(has(case)) for case in cases) >= 20


def decodes(contexts: list[int], seed: int, padding: int) -> Case:
    return Case(
        dtype=torch.float32,
        kv_heads=2,
        group=2,
        dim=64,
        value_dim=64,
        block_size=16,
        counts=[1] * len(contexts),
        starts=[length - 1 for length in contexts],
        num_slices=0,
        padding=padding,
        variant=Variant(0.125, window=150),
        processors=8,
        seed=seed,
    )


def mixture(counts: list[int], starts: list[int], seed: int) -> Case:
    return dataclasses.replace(decodes([1], seed, 0), counts=counts, starts=starts, num_slices=len(counts))


def test_decodes_behind_prompts_whose_every_token_is_a_tile() -> None:
    check(dataclasses.replace(mixture([3, 1, 1], [0, 20, 5], 1), group=128, num_slices=1))


@pytest.mark.parametrize(
    ("first", "then"),
    [
        (decodes([300, 200, 1], 0, 0), decodes([290], 3, 2)),
        (decodes([300], 0, 3), decodes([18, 200, 17, 100], 3, 0)),
        # What a graph of small mixed steps promises is so many tokens, and no more of one sequence than the
        # first has; the last of the second is padding.
        (mixture([40, 1, 5, 2], [0, 200, 31, 9], 0), mixture([2, 33, 12, 1], [100, 0, 70, 250], 3)),
    ],
)
def test_recorded_launches_serve_any_step_of_as_many_tokens(
    first: Case, then: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a CUDA graph would: the same launches, with the same arguments, on other contents."""
    recorded: list[Callable[[], Any]] = []
    if DEVICE == "cuda":
        pytest.skip("launches are recorded in the interpreter only")
    run = interpreter.InterpretedFunction.run

    def recording(self: Any, *args: Any, grid: Any, warmup: bool, **constants: Any) -> Any:
        if not warmup:
            recorded.append(lambda: run(self, *args, grid=grid, warmup=False, **constants))
        return run(self, *args, grid=grid, warmup=warmup, **constants)

    with monkeypatch.context() as patch:
        patch.setattr(interpreter.InterpretedFunction, "run", recording)
        step = first.step(Triton(), first.dtype)
        tensors = first.tensors()
        wide = max(step.block_tables.shape[1], -(-400 // 16))
        step.block_tables = torch.nn.functional.pad(
            step.block_tables, (0, wide - step.block_tables.shape[1])
        ).contiguous()
        bigger = [torch.full((200, *pool.shape[1:]), torch.nan) for pool in step.cache.layers[0]]
        step.cache.layers[0] = (bigger[0].nan_to_num(), bigger[1].nan_to_num())
        out = Triton(first.processors).attend(*tensors, 0, first.variant, step)
    want, _ = attended(then, Reference(), torch.float32)
    fresh = then.step(Triton(), then.dtype)
    for static, new in zip(tensors, then.tensors(), strict=True):
        static.copy_(new)
    for static, new in zip(step.cache.layers[0], fresh.cache.layers[0], strict=True):
        static.fill_(torch.nan)[: len(new)] = new
    step.block_tables.zero_()[:, : fresh.block_tables.shape[1]] = fresh.block_tables
    for name in ("query_start", "context_lens", "cache_slots"):
        getattr(step, name).copy_(getattr(fresh, name))
    out.fill_(torch.nan)
    for launch in recorded:
        launch()
    torch.testing.assert_close(out[: len(want)], want, rtol=2e-5, atol=2e-5)
    assert (out[len(want) :] == 0).all()


def kind(**changes: Any) -> Kind:
    shape = {"dtype": torch.bfloat16, "kv_heads": 8, "group": 4, "dim": 128, "value_dim": 128}
    settings = {"block_size": 16, "windowed": False, "capped": False, "sinks": False}
    return Kind(**{**shape, **settings, **changes})


def a_step(counts: list[int], num_decodes: int) -> StepContext:
    sequences = len(counts) + num_decodes
    return StepContext(
        cache=KvCache(1, 16, Reference().new_pools),
        positions=torch.zeros(0),
        query_start=torch.zeros(sequences + 1),
        context_lens=torch.zeros(sequences),
        block_tables=torch.zeros(sequences, 1),
        cache_slots=torch.zeros(0),
        slices=[(0, count, 0) for count in counts],
        num_slice_tokens=sum(counts),
        max_context_len=1,
        context_sum=1,
    )


def test_contexts_are_split_where_there_are_few_tiles() -> None:
    parts = []
    for num_decodes in (1, 8, 32, 64, 256):
        (launch,) = launches(a_step([], num_decodes), num_decodes, kind(), 132)
        assert launch.grid[:2] == (num_decodes, 8) and launch.tiling.rows == 16
        parts.append(launch.parts)
    assert parts == [64, 8, 2, 1, 1]
    (chunk,) = launches(a_step([128], 0), 128, kind(), 132)
    assert chunk.parts == 2 and chunk.tiling.rows == 128


def test_prompts_and_the_decodes_beside_them_have_tiles_of_their_own() -> None:
    prompts, beside = launches(a_step([2000, 30], 5), 2035, kind(), 132)
    assert (prompts.num_sequences, prompts.num_tokens, prompts.tiling.rows) == (2, 2030, 128)
    assert (beside.first_sequence, beside.first_token, beside.num_sequences) == (2, 2030, 5)
    assert beside.tiling.rows == 16 and beside.grid[0] == 5
    # Tokens with a few drafts are no prompts.
    (drafts,) = launches(a_step([5, 5, 5], 2), 17, kind(), 132)
    assert drafts.tiling.rows == 64 and drafts.grid[0] == 5


@pytest.mark.parametrize("group", [1, 3, 5, 16, 40, 71, 128])
@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("dim", [64, 256])
def test_a_tile_has_room_for_the_heads_of_a_token(group: int, dtype: torch.dtype, dim: int) -> None:
    one = kind(group=group, dtype=dtype, dim=dim)
    for most in (1, 3, 50, 1000):
        for launch in launches(a_step([most] * 3, 2), 3 * most + 2, one, 132):
            tokens = launch.tiling.rows // group
            assert tokens >= 1
            assert not launch.tiling.one_tile or most <= tokens or launch.first_sequence
            needed = 3 * -(-most // tokens) if launch.first_sequence == 0 else 2
            assert launch.grid[0] >= needed
