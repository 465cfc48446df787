"""What is told of a model that cannot be served."""

from __future__ import annotations


class ModelError(ValueError):
    """A model that cannot be served, and why; one line for the user."""
