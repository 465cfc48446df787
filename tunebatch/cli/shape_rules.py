"""What random weights allow: speculation by an acceptance that the user names, and no fake of a real one."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tunebatch.cli.errors import CliError

if TYPE_CHECKING:
    from tunebatch.models.named_shape import NamedShape
    from tunebatch.profile import Profile

_DRAFTERS = {"ngram", "draft"}


def check_shapes(profile: Profile, strategies: Iterable[str]) -> None:
    """Refuses, before anything is loaded, what would measure chance, or chance instead of a measurement.

    Args:
        strategies: Names of all that will be served.

    Raises:
        CliError: Speculation on random weights without ``--acceptance``; that with real weights; a draft
            that is not the target's.
        ShapeError: A shape without that many layers.
    """
    from tunebatch.models.named_shape import named_shape

    model = profile.model
    target, draft = named_shape(model.name), named_shape(model.draft)
    speculative = [name for name in strategies if _DRAFTERS & set(name.split("+"))]
    if target is None:
        if model.acceptance:
            raise CliError(
                f"--acceptance: {model.name} has real weights, whose acceptance is measured; leave it out, "
                "or name a shape with random weights, such as --model llama-32m"
            )
        if draft is not None:
            raise CliError(
                f"--draft {model.draft}: its weights are random and never guess what {model.name} says; name "
                "a draft model with weights"
            )
        return
    if speculative and not model.acceptance:
        raise CliError(
            f"{speculative[0]}: {target.shown} says nothing that could be guessed, so there is no "
            "acceptance to measure; --acceptance 0.7 assumes one, and results say synthetic acceptance"
        )
    _check_draft(target, draft, model.draft, [name for name in speculative if "draft" in name.split("+")])


def _check_draft(target: NamedShape, draft: NamedShape | None, given: str, drafting: list[str]) -> None:
    if drafting and given == "auto":
        raise CliError(
            f"{drafting[0]} needs a draft model with the vocabulary of {target.name}: name it with "
            f"--draft{_drafts_of(target)}; or draft without one, with +ngram"
        )
    if draft is not None and draft.sizes.vocab != target.sizes.vocab:
        raise CliError(
            f"--draft {draft.name}: a vocabulary of {draft.sizes.vocab} tokens, {target.name} has "
            f"{target.sizes.vocab}{_drafts_of(target)}"
        )


def _drafts_of(target: NamedShape) -> str:
    """The smallest other shape with the same vocabulary, or two layers of the shape itself."""
    from tunebatch.models.named_shape import named_shape
    from tunebatch.models.parameters import count_parameters
    from tunebatch.models.shapes import SHAPES

    whole = target.name.partition(":")[0]
    others = [shape for name in SHAPES if name != whole and (shape := named_shape(name)) is not None]
    fitting = [shape for shape in others if shape.sizes.vocab == target.sizes.vocab]
    smallest = min(fitting, key=lambda shape: count_parameters(shape.sizes).total, default=None)
    return f", such as {smallest.name if smallest is not None else f'{whole}:2-layers'}"
