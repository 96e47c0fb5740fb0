"""Desired state: `sqlite` for a daemon, `memory` for tests. One contract suite runs on both."""
