"""Traffic: a description of arrivals, lengths and prompts becomes requests."""
