"""The sides of ``engine_cpu.py``: one file for each engine, all of them serving the same work."""
