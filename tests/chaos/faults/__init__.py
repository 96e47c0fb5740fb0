"""The faults, one module each: `design(...)` says what rig it needs, `strike(rig, number)` is one run of it."""
