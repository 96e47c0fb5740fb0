"""Frozen values and enums that every layer shares. No behaviour beyond what a value can say of itself."""
