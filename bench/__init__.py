"""Benches: one module per hot path, peers and the physical limit beside us in the same run. See README.md."""
