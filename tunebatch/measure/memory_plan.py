"""What a device's memory holds of a model and its sequences, predicted from the config alone.

KV room        = device memory x utilization - weights - peak activations
                 (on this machine's CPU no more than the executor takes of what is free)
max concurrent = KV room / KV bytes of a sequence
"""

from __future__ import annotations

from dataclasses import dataclass

from tunebatch.measure.decode_balance import (
    DecodeWork,
    Peaks,
    balance_of_weights,
    compute_bound_batch,
    memory_bound_from,
)
from tunebatch.measure.kv_memory import (
    Batches,
    Fits,
    KvLayout,
    SequenceLengths,
    batches,
    fits,
    head_counts,
)
from tunebatch.measure.kv_room import cpu_kv_bytes
from tunebatch.models.architecture import Architecture
from tunebatch.models.parameters import Parameters

# Bytes of a number. Below 16 bits it is the layers' matrices that are so small; embeddings, norms and the
# head stay in 16 bits, as in published FP8, GPTQ and AWQ checkpoints. Their scales are not counted.
# MXFP4 is of the experts' matrices alone: 4 bits, and a scale of 8 bits for each 32 of them (OCP Microscaling
# Formats v1.0, 2023), as gpt-oss is published.
WEIGHT_BYTES = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "int4": 0.5,
    "mxfp4": 4.25 / 8,
}
KV_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2, "fp8": 1, "int8": 1}
# Rows of logits that exist at once, at most: the sequences that a step samples.
_SAMPLED_ROWS = 256


@dataclass(frozen=True, slots=True)
class Device:
    """Where the model is to run.

    Attributes:
        utilization: Share of the memory that weights, activations and KV cache may take together.
        peaks_16: Peaks of 16-bit arithmetic, in which smaller weights are computed too; None: not known.
        peaks_32: Peaks of float32.
        cpu_free_bytes: Of this machine's CPU: memory that is free now, of which the executor takes a share;
            None: another device, all of whose memory it may take.
    """

    name: str
    memory_bytes: int
    utilization: float
    peaks_16: Peaks | None = None
    peaks_32: Peaks | None = None
    cpu_free_bytes: int | None = None

    @property
    def usable_bytes(self) -> int:
        return int(self.memory_bytes * self.utilization)


@dataclass(frozen=True, slots=True)
class Setting:
    """What is asked of every model alike.

    Attributes:
        dtype: Of the weights.
        kv_dtype: Of the KV cache.
        block_size: Tokens of a KV block.
        batched_tokens: Most tokens of a step, which set the peak of the activations.
        prefix_tokens: Tokens that are the same in front of every sequence.
    """

    dtype: str
    kv_dtype: str
    block_size: int = 16
    batched_tokens: int = 2048
    prefix_tokens: int = 0


@dataclass(frozen=True, slots=True)
class HeadForm:
    """The model as if its attention had another number of KV heads, with the KV room as it is.

    Attributes:
        factor: KV bytes, as a multiple of the model's own.
        own: It is the model's own number.
    """

    form: str
    kv_heads: int
    kv_bytes_per_token: int
    factor: float
    batch: Batches
    own: bool


@dataclass(frozen=True, slots=True)
class DecodeBalance:
    """The batch at which compute takes over from memory traffic in a decode step.

    Attributes:
        weights_only: If there were no keys and values to read.
        context: Tokens of each sequence for ``with_kv``.
        with_kv: With their keys and values; None: none is.
        never_from_context: From so many tokens on no batch is; None: not within the model's context.
    """

    peaks: Peaks
    weights_only: float
    context: float
    with_kv: float | None
    never_from_context: int | None


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Everything that is predicted for one model.

    Attributes:
        source: Where the config is from.
        parameters: None: they cannot be counted.
        weights_given: The bytes of the weights are the user's, not counted.
        left_bytes: On a CPU: what the executor leaves to others of the memory that it could use.
        kv_room_bytes: Below 0 where the weights do not fit.
        forms: None of a latent, which all heads share.
    """

    name: str
    source: str
    notes: tuple[str, ...]
    architecture: Architecture
    parameters: Parameters | None
    setting: Setting
    device: Device
    lengths: SequenceLengths
    layout: KvLayout
    weight_bytes: int
    weights_given: bool
    activation_bytes: int
    left_bytes: int
    kv_room_bytes: int
    num_blocks: int
    fits: Fits
    forms: tuple[HeadForm, ...]
    decode: DecodeBalance | None

    def in_room(self, kv_room_bytes: int) -> Fits:
        """What another KV room holds of the same sequences, such as one that was measured."""
        by_compute = None if self.decode is None else self.decode.with_kv
        return fits(kv_room_bytes, self.layout, self.lengths, self.setting.prefix_tokens, by_compute)


def plan_memory(
    name: str,
    model: Architecture,
    parameters: Parameters | None,
    device: Device,
    lengths: SequenceLengths,
    setting: Setting,
    *,
    given_weight_bytes: int | None = None,
    source: str = "",
    notes: tuple[str, ...] = (),
) -> MemoryPlan:
    """Predicts what fits. The lengths are without the prefix, and fit the model's context with it.

    Args:
        parameters: None: they cannot be counted, and ``given_weight_bytes`` says what they take.
        given_weight_bytes: Of the weights as the user has them; None: counted.
    """
    layout = kv_layout(model, setting)
    weights = given_weight_bytes
    if weights is None:
        assert parameters is not None, "neither parameters nor the bytes of the weights"
        weights = weight_bytes(parameters, setting.dtype)
    activations = activation_bytes(model, setting.batched_tokens, WEIGHT_BYTES[setting.dtype])
    most, prefix = device.usable_bytes - weights - activations, setting.prefix_tokens
    room = _room(most, device, weights, layout.bytes_per_token * model.max_context)
    decode = None if parameters is None else _balance(model, parameters, device, lengths, setting, layout)
    by_compute = None if decode is None else decode.with_kv
    return MemoryPlan(
        name=name,
        source=source,
        notes=notes,
        architecture=model,
        parameters=parameters,
        setting=setting,
        device=device,
        lengths=lengths,
        layout=layout,
        weight_bytes=weights,
        weights_given=given_weight_bytes is not None,
        activation_bytes=activations,
        left_bytes=most - room,
        kv_room_bytes=room,
        num_blocks=max(0, room) // layout.bytes_per_block,
        fits=fits(room, layout, lengths, prefix, by_compute),
        forms=() if model.latent is not None else _forms(model, room, layout, lengths, prefix),
        decode=decode,
    )


def kv_layout(model: Architecture, setting: Setting) -> KvLayout:
    """What a cache keeps of the model."""
    return KvLayout(
        model.kv_heads,
        model.head_dim,
        model.windows,
        KV_BYTES[setting.kv_dtype],
        setting.block_size,
        model.latent,
    )


def weight_bytes(parameters: Parameters, dtype: str) -> int:
    """Of all parameters; see ``WEIGHT_BYTES``."""
    return _bytes(parameters, parameters.embedding + parameters.norms + parameters.head, dtype)


def activation_bytes(
    model: Architecture, tokens: int, element_bytes: float, sampled_rows: int = _SAMPLED_ROWS
) -> int:
    """The peak within a step of so many tokens, roughly, and rather too much.

    It is reached in the MLP, where the product exists beside what it is made of (with experts, for each that
    a token goes through, and each of these has its own inputs and outputs). Beside it there are the residual,
    what was added to it, the normalized input, and what attention left. The logits come later. What an
    allocator keeps of freed memory is not in it.
    """
    inner = model.family.mlp_copies * model.intermediate
    if model.num_experts:
        inner = model.experts_per_token * (inner + 4 * model.hidden)
    width = inner + 3 * model.hidden + 2 * (model.heads + model.kv_heads) * model.head_dim
    size = max(2.0, element_bytes)
    logits = min(tokens, sampled_rows) * model.vocab * (size + 4)  # and once more in float32, to sample from
    return int(max(tokens * width * size, logits))


def _bytes(parameters: Parameters, kept: int, dtype: str) -> int:
    """Of the layers' matrices in the dtype, and of the rest that is kept in 16 bits or more."""
    size, layers = WEIGHT_BYTES[dtype], parameters.attention + parameters.mlp
    small = parameters.experts if dtype == "mxfp4" else layers
    return int(small * size + (kept + layers - small) * max(2.0, size))


def _room(most: int, device: Device, weights: int, context_bytes: int) -> int:
    if device.cpu_free_bytes is None:
        return most
    return min(most, cpu_kv_bytes(device.cpu_free_bytes - weights, context_bytes))


def _balance(
    model: Architecture,
    parameters: Parameters,
    device: Device,
    lengths: SequenceLengths,
    setting: Setting,
    layout: KvLayout,
) -> DecodeBalance | None:
    peaks = device.peaks_32 if setting.dtype == "float32" else device.peaks_16
    if peaks is None:
        return None
    read = parameters.norms + parameters.head + parameters.tied_head
    work = DecodeWork(_bytes(parameters, read, setting.dtype), 2.0 * parameters.active, model.heads, layout)
    context = setting.prefix_tokens + lengths.mean_context
    return DecodeBalance(
        peaks=peaks,
        weights_only=balance_of_weights(work, peaks),
        context=context,
        with_kv=compute_bound_batch(work, peaks, context),
        never_from_context=memory_bound_from(work, peaks, model.max_context),
    )


def _forms(
    model: Architecture, room: int, layout: KvLayout, lengths: SequenceLengths, prefix: int
) -> tuple[HeadForm, ...]:
    return tuple(
        HeadForm(
            form=form,
            kv_heads=count,
            kv_bytes_per_token=layout.with_heads(count).bytes_per_token,
            factor=count / model.kv_heads,
            batch=batches(room, layout.with_heads(count), lengths, prefix),
            own=count == model.kv_heads,
        )
        for form, count in head_counts(model.heads, model.kv_heads)
    )
