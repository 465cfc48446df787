"""The parts of ``gpu.py``: one file for each, and what they share."""
