"""The configuration at the edge: file, environment and flags in, frozen settings out."""
