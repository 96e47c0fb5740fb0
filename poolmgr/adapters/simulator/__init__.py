"""The simulated driver: scenarios, the catalogue of GPU models, and the host that shows them (SIM-1 to SIM-3)."""
