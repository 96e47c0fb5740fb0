"""Desired state, history and leases: `sqlite` for a daemon, `memory` for tests, `failing` around either. One contract
suite runs on all.
"""
