"""What `poolmgr plan` does without a daemon: the same decisions as the daemon's, over the same adapters.

A composition root like `poolmgr.app`, of nothing but a planner and a reader of model files: commands may not import
what decides, and what decides may not import what reads. Only `poolmgr.cli.plan` imports it.
"""

from __future__ import annotations

from poolmgr.adapters.modelfiles import ModelFileReader
from poolmgr.adapters.planning.native import NativePlanner
from poolmgr.core.estimate import estimate
from poolmgr.core.split import plan
from poolmgr.model.memory import MemoryEstimate, MemoryQuestion
from poolmgr.model.placement import SplitQuery
from poolmgr.model.plan import ModelProfile, SplitPlan


def estimate_memory(question: MemoryQuestion) -> MemoryEstimate:
    """From the file's headers alone: only the daemon has measured anything. Raises ClientError."""
    return estimate(ModelFileReader().read(question.model_path), question)


def plan_split(query: SplitQuery) -> SplitPlan:
    """Over the devices that the query names; there is no host whose they could be. Raises ClientError."""
    devices = query.devices or ()
    if isinstance(query.model, ModelProfile):
        request = query.request(query.model, devices, 0)
    else:
        of = estimate_memory(query.model)
        request = query.request(of.model, devices, of.activation_bytes, of.overhead_bytes)
    return plan(request, NativePlanner().search)
