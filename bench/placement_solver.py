"""HiGHS on splits: does it find a plan that is better than the best that is known?

The layers are a path of nodes 0..L, a stage an arc from its first layer to the one after its last, and a plan a flow of
one from 0 to L that uses no device twice. For the slowest stage only arcs faster than the known best are kept, and the
question is whether any flow is left, so that no tolerance of the solver touches the comparison; for the sum it
minimises. Requests without links only: there, what a stage takes does not depend on the one before.
"""

from __future__ import annotations

from math import inf

import highspy
import numpy as np

from bench.placement_judge import TOLERANCE, Question, objective_of, tables
from poolmgr.model.plan import Objective, SplitRequest

MAX_DEVICES = 4  # eight different ones are not proved within 20 s
SCALE = 1000.0  # the best in the solver's units: its absolute tolerances are 1e-6


def can_be_asked(request: SplitRequest) -> bool:
    of_time = objective_of(request) in (Objective.MIN_BOTTLENECK, Objective.MIN_LATENCY)
    return of_time and not request.links and len(request.devices) <= MAX_DEVICES


def confirms(request: SplitRequest, best: float, limit_seconds: float) -> bool | None:
    """False where HiGHS knows a plan better than `best` (infinite: where it knows any). None where it is not asked or
    comes to no end in time."""
    if not can_be_asked(request):
        return None
    question = Question(request)
    summed = question.objective is Objective.MIN_LATENCY and best < inf
    hop = request.default_hop_seconds
    stages = [table + hop for table in tables(question)]
    limit = best if summed or best == inf else np.nextafter(best, 0.0)
    arcs = [
        (device, int(first), int(end), float(table[first, end]))
        for device, table in enumerate(stages)
        for first, end in zip(*np.nonzero((table <= limit) & (table < inf)), strict=True)
    ]
    if not arcs or best == 0.0:
        return True
    solver = solve(question, arcs, SCALE / best if summed else 0.0, limit_seconds)
    status = solver.getModelStatus()
    if status == highspy.HighsModelStatus.kInfeasible:
        return True
    if status != highspy.HighsModelStatus.kOptimal:
        return None
    return summed and chosen_sum(solver, arcs) >= best * (1 - TOLERANCE)


def solve(
    question: Question, arcs: list[tuple[int, int, int, float]], scale: float, limit_seconds: float
) -> highspy.Highs:
    nodes, number = question.count + 1, len(question.request.devices)
    model = highspy.HighsLp()
    model.num_col_, model.num_row_ = len(arcs), nodes + number + 1
    model.col_cost_ = np.array([seconds * scale for *_, seconds in arcs])
    model.col_lower_, model.col_upper_ = np.zeros(len(arcs)), np.ones(len(arcs))
    model.integrality_ = [highspy.HighsVarType.kInteger] * len(arcs)
    flow = np.zeros(nodes)
    flow[0], flow[-1] = 1.0, -1.0
    model.row_lower_ = np.concatenate([flow, np.full(number + 1, -highspy.kHighsInf)])
    model.row_upper_ = np.concatenate([flow, np.ones(number), [question.most]])
    model.a_matrix_.format_ = highspy.MatrixFormat.kColwise
    model.a_matrix_.start_ = np.arange(0, 4 * len(arcs) + 1, 4)
    model.a_matrix_.index_ = np.array(
        [row for device, first, end, _ in arcs for row in (first, end, nodes + device, nodes + number)]
    )
    model.a_matrix_.value_ = np.tile([1.0, -1.0, 1.0, 1.0], len(arcs))
    solver = highspy.Highs()
    solver.setOptionValue("output_flag", False)
    solver.setOptionValue("time_limit", limit_seconds)
    solver.setOptionValue("threads", 1)
    solver.setOptionValue("mip_rel_gap", 0.0)
    solver.setOptionValue("mip_abs_gap", 1e-7)
    solver.passModel(model)
    solver.run()
    return solver


def chosen_sum(solver: highspy.Highs, arcs: list[tuple[int, int, int, float]]) -> float:
    """Of the arcs that are taken, in order: in float64, not in the solver's arithmetic."""
    taken = solver.getSolution().col_value
    return sum(
        seconds for *_, seconds in sorted((a for a, x in zip(arcs, taken, strict=True) if x > 0.5), key=by_first)
    )


def by_first(arc: tuple[int, int, int, float]) -> int:
    return arc[1]
