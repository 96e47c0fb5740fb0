"""The GPU driver, asked by a process of its own that a hung driver may take (TEL-1)."""
