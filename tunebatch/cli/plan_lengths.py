"""How long the sequences are that ``tunebatch plan`` makes room for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from tunebatch.cli.errors import CliError

if TYPE_CHECKING:
    from tunebatch.measure.kv_memory import SequenceLengths
    from tunebatch.workload.spec import WorkloadSpec

_DEFAULT = "chat"
_SAMPLES = 20_000


@dataclass(frozen=True, slots=True)
class AskedLengths:
    """The flags, as written.

    Attributes:
        tokens: Prompt and output together, of every sequence.
        workload: A named one, whose lengths are meant.
        prompt_tokens: A law of lengths; see ``parse_length``.
    """

    tokens: int | None = None
    workload: str | None = None
    prompt_tokens: str | None = None
    output_tokens: str | None = None


def common_lengths(
    asked: AskedLengths, contexts: Sequence[tuple[str, int]], prefix_tokens: int
) -> SequenceLengths:
    """Of several models: the sequences that fit the shortest of their contexts, so that columns compare.

    Args:
        contexts: Names of the models, and their longest contexts.

    Raises:
        CliError: As `sequence_lengths`.
    """
    import numpy as np

    name, shortest = min(contexts, key=lambda one: one[1])
    found = sequence_lengths(asked, shortest, prefix_tokens, name)
    longest = max(context for _, context in contexts)
    if np.array_equal(found.tokens, sequence_lengths(asked, longest, prefix_tokens, name).tokens):
        return found
    told = f"all models get the lengths that fit the {shortest:,} tokens of {name}, so that columns compare"
    return replace(found, notes=(*found.notes, told))


def sequence_lengths(
    asked: AskedLengths, max_context: int, prefix_tokens: int, model: str
) -> SequenceLengths:
    """A sample of sequences that fit the model's context behind the prefix.

    Laws are scaled as a run scales them, and what is still too long is clipped.

    Raises:
        CliError: An unknown workload, an impossible law, or a length that the context does not hold.
    """
    import numpy as np

    from tunebatch.measure.kv_memory import SequenceLengths
    from tunebatch.workload.named import scaled_to

    room = max_context - prefix_tokens
    if room < 2:
        raise CliError(
            f"--shared-prefix {prefix_tokens}: {model} has a context of {max_context} tokens; "
            f"at most {max(0, max_context - 2)}"
        )
    if asked.tokens is not None:
        if asked.tokens > room:
            behind = f" behind the prefix of {prefix_tokens}" if prefix_tokens else ""
            raise CliError(
                f"--tokens {asked.tokens}: {model} has a context of {max_context} tokens; "
                f"at most {room}{behind}"
            )
        return SequenceLengths(f"{asked.tokens:,} tokens", np.array([asked.tokens]), float(asked.tokens))
    spec = scaled_to(_spec(asked), room)
    assert spec.prompt_lengths is not None and spec.output_lengths is not None
    rng = np.random.default_rng(0)
    prompts, outputs = (law.sample(_SAMPLES, rng) for law in (spec.prompt_lengths, spec.output_lengths))
    outputs = np.minimum(outputs, np.maximum(room // 2, room - prompts))
    prompts = np.minimum(prompts, room - outputs)
    context = float((outputs * (prompts + outputs / 2)).sum() / outputs.sum())
    return SequenceLengths(spec.name, prompts + outputs, context, spec.notes)


def _spec(asked: AskedLengths) -> WorkloadSpec:
    from tunebatch.profile import nearest
    from tunebatch.workload.lengths import parse_length
    from tunebatch.workload.named import NAMED

    name = asked.workload or _DEFAULT
    if name not in NAMED:
        raise CliError(f"--workload {name!r}: unknown workload{nearest(name, NAMED)}")
    spec, told = NAMED[name], [name]
    try:
        if asked.prompt_tokens is not None:
            law = parse_length(asked.prompt_tokens, "--prompt-tokens")
            spec, told = replace(spec, prompt_lengths=law), [*told, f"prompts {law}"]
        if asked.output_tokens is not None:
            law = parse_length(asked.output_tokens, "--output-tokens")
            spec, told = replace(spec, output_lengths=law), [*told, f"outputs {law}"]
    except ValueError as error:
        raise CliError(str(error)) from None
    if len(told) == 3:  # nothing is left of the named one
        told = told[1:]
    return replace(spec, name=", ".join(told))
