"""What the machine did while something was measured: processor, GPU, and how much of what it can do."""
