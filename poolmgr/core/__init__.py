"""Decisions, and nothing else: no clock, no randomness, no I/O. `pool.step` is the door."""
