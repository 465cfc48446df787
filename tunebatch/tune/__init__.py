"""Search: the capacity of one configuration, and the configuration with the most of it."""
