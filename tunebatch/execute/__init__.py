"""Where a step plan becomes tokens and time."""
