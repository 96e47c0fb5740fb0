"""Named stories, each with events that no other has: what engines do, and what befalls whom."""

from tests.sim import scenarios_engines, scenarios_hosts, scenarios_limits, scenarios_reloads
from tests.sim.telling import SCENARIOS

__all__ = ["SCENARIOS", "scenarios_engines", "scenarios_hosts", "scenarios_limits", "scenarios_reloads"]
