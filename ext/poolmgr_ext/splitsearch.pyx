# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Which search answers which objective, and what is done when it would take too many steps."""

from libc.math cimport INFINITY

from poolmgr_ext.splitbeam cimport Beam, beam_attempt, beam_begin, beam_end, beam_narrow, least_sum, recut
from poolmgr_ext.splitbounds cimport fastest_possible
from poolmgr_ext.splitcost cimport Plan, bits_of, of_bits, plan_seconds
from poolmgr_ext.splitlattice cimport (
    EVENNESS, HEADROOM, SECONDS, attempt, first_order, lattice_begin, lattice_end, narrow,
    sweep_begin, sweep_end)
from poolmgr_ext.splitrows cimport (
    DONE, NO_MEMORY, TOO_MUCH, final_row, forward, greedy, rows_begin, rows_end, suffix_bounds,
    suffix_bounds_slowest, walk_back)
from poolmgr_ext.splitties cimport settle

cdef extern from *:
    ctypedef unsigned long long wide "unsigned __int128"

cdef int64_t LARGEST_SUM = <int64_t> 1 << 62
cdef double SLACK = 1e-9  # taken off relaxations, so that rounding never lifts one above a real plan
# How much better than the best plan that is known others have to be to be looked for, each with an eighth of the steps.
cdef double[3] BETTER = [0.99, 0.95, 0.8]


cdef int find(Problem *p, const Model *model, Objective objective, int64_t most_steps, Answer *answer) noexcept nogil:
    """NO_MEMORY or CONTRADICTION where there is no answer."""
    cdef Sweep sweep
    cdef int outcome
    cdef bint in_seconds = objective == MIN_LATENCY or objective == MIN_BOTTLENECK
    answer.plan.count, answer.proved, answer.bound, answer.steps = 0, True, 0, 0
    answer.context = 0 if objective == MAX_CONTEXT else model.asked
    if p.classes == 0:
        return 0
    if lattice_begin(p) < 0:
        return -1
    if p.states and in_seconds and (objective == MIN_LATENCY or p.linked):
        outcome = by_rows(p, objective == MIN_BOTTLENECK, most_steps, answer)
    elif sweep_begin(&sweep, p) < 0:
        outcome = -1
    else:
        if objective == MAX_CONTEXT:
            outcome = by_context(p, &sweep, model, answer)
        elif p.states:
            outcome = by_bounds(&sweep, objective, answer)
        else:
            outcome = by_beam(&sweep, objective, answer)
        answer.steps += sweep.steps
        sweep_end(&sweep)
    lattice_end(p)
    return outcome


cdef int by_bounds(Sweep *sweep, Objective objective, Answer *answer) noexcept nogil:
    """MIN_BOTTLENECK and BALANCED without links: the best bound, then the fewest devices, then headroom, then order."""
    cdef int most = sweep.p.most
    cdef Plan *plan = &answer.plan
    if not attempt(sweep, most, False, plan):
        return 0
    if objective == MIN_BOTTLENECK:
        answer.bound = of_bits(narrow(sweep, SECONDS, fastest_possible(sweep.p), most, plan))
    else:
        narrow(sweep, EVENNESS, -bits_of(1), most, plan)
    attempt(sweep, most, True, plan)
    most = plan.count
    narrow(sweep, HEADROOM, -LARGEST_SUM, most, plan)
    first_order(sweep, most, plan)
    return 0


cdef bint at_context(const Model *model, int64_t context) noexcept nogil:
    """Fills `memory_then`. False where that is more than any devices have. Rounds up; a window ends growth."""
    cdef int layer
    cdef int64_t asked, then, window
    cdef wide kv, total = 0
    model.memory_then[0] = 0
    for layer in range(model.layers):
        kv = <wide> model.kv[layer]
        if model.asked and context:
            window = model.window[layer]
            asked = window if 0 < window < model.asked else model.asked
            then = window if 0 < window < context else context
            kv = (kv * <wide> then + <wide> (asked - 1)) // <wide> asked
        total += kv + <wide> model.resident[layer]
        if total > <wide> LARGEST_SUM:
            return False
        model.memory_then[layer + 1] = <int64_t> total
    return True


cdef bint fits(Sweep *sweep, Plan *plan) noexcept nogil:
    cdef Beam beam
    cdef bint found
    if sweep.p.states:
        return attempt(sweep, sweep.p.most, False, plan)
    if beam_begin(&beam, sweep, False) < 0:
        return False
    found = beam_attempt(&beam, sweep.p.most, plan)
    sweep.steps += beam.steps
    beam_end(&beam)
    return found


cdef int by_context(Problem *p, Sweep *sweep, const Model *model, Answer *answer) noexcept nogil:
    """The largest context that fits, then the most headroom, then the fewest devices that leave it, then order."""
    cdef int64_t low = 0, high = 0, asked
    cdef Plan *plan = &answer.plan
    answer.proved = p.states > 0
    if model.asked:
        high = model.limit if model.limit else model.asked
    p.memory = model.memory_then
    asked = high
    while low < high:
        if at_context(model, asked) and fits(sweep, plan):
            low = asked
        else:
            high = asked - 1
        asked = low + (high - low + 1) // 2
    plan.count = 0
    if (model.asked and not low) or not at_context(model, low) or not fits(sweep, plan):
        return 0
    answer.context = low
    if not p.states:
        return 0
    narrow(sweep, HEADROOM, -LARGEST_SUM, p.most, plan)
    attempt(sweep, p.most, True, plan)
    first_order(sweep, plan.count, plan)
    return 0


cdef int by_rows(const Problem *p, bint slowest, int64_t most_steps, Answer *answer) noexcept nogil:
    """MIN_LATENCY, and MIN_BOTTLENECK with links."""
    cdef Rows rows
    cdef int outcome, index
    if rows_begin(&rows, p, slowest, most_steps) < 0:
        return -1
    greedy(&rows, &answer.plan)
    if answer.plan.count:
        rows.ceiling = plan_seconds(p, slowest, &answer.plan)
    outcome = forward(&rows)
    index = final_row(&rows, rows.value, 0, rows.ceiling) if outcome != NO_MEMORY else -1
    if outcome == DONE and index >= 0:
        answer.bound = rows.ceiling
        rows.most_steps = rows.steps + most_steps // 2
        outcome = settle(&rows, &answer.plan)
        outcome = DONE if outcome == TOO_MUCH else outcome
    elif outcome == TOO_MUCH:
        if index >= 0:
            walk_back(&rows, rows.value, rows.reach, index, &answer.plan)
        outcome = relaxed(&rows, answer)
    answer.steps = rows.steps
    rows_end(&rows)
    return outcome


cdef int relaxed(Rows *rows, Answer *answer) noexcept nogil:
    """After too many steps: only plans that are better by a share, then by a larger one. What is not found tells how
    much better there may be."""
    cdef int attempts, outcome, index
    cdef double bound = root_bound(rows), ceiling
    cdef int64_t share = rows.most_steps // 8
    answer.proved = False
    answer.bound = bound
    if not answer.plan.count:
        if any_plan(rows.p, &answer.plan) < 0:
            return NO_MEMORY
        if not answer.plan.count:
            answer.proved, answer.bound = True, 0
            return DONE
    ceiling = plan_seconds(rows.p, rows.slowest, &answer.plan)
    for attempts in range(3):
        rows.ceiling, rows.better = ceiling, BETTER[attempts]
        rows.most_steps = rows.steps + share
        outcome = forward(rows)
        if outcome == NO_MEMORY:
            return outcome
        index = final_row(rows, rows.value, 0, rows.ceiling)
        if index >= 0:
            walk_back(rows, rows.value, rows.reach, index, &answer.plan)
            ceiling = rows.ceiling
        if outcome == DONE:
            answer.bound = ceiling * rows.better * (1 - SLACK)
            answer.bound = answer.bound if answer.bound > bound else bound
            break
    return DONE


cdef int any_plan(const Problem *p, Plan *plan) noexcept nogil:
    """One that fits, by memory alone; `count` 0 where that is proved to be none."""
    cdef Sweep sweep
    plan.count = 0
    if sweep_begin(&sweep, p) < 0:
        return -1
    attempt(&sweep, p.most, False, plan)
    sweep_end(&sweep)
    return 0


cdef double root_bound(Rows *rows) noexcept nogil:
    """Seconds that no plan is better than, whatever is known."""
    cdef double ceiling = rows.ceiling
    cdef int first
    rows.ceiling = INFINITY
    first = suffix_bounds_slowest(rows, 0) if rows.slowest else suffix_bounds(rows, 0)
    rows.ceiling = ceiling
    return rows.bound[0] * (1 - SLACK) if first == 0 else 0


cdef int by_beam(Sweep *sweep, Objective objective, Answer *answer) noexcept nogil:
    cdef Beam beam
    cdef Plan *plan = &answer.plan
    cdef const Problem *p = sweep.p
    cdef int64_t fastest = fastest_possible(p)
    cdef int outcome = 0
    cdef bint found
    if beam_begin(&beam, sweep, objective == MIN_LATENCY) < 0:
        return -1
    answer.proved = False
    found = beam_attempt(&beam, p.most, plan)
    if not found and beam.adds:
        beam.adds = False
        found = beam_attempt(&beam, p.most, plan)
    if found and objective == MIN_BOTTLENECK:
        beam_narrow(&beam, SECONDS, fastest, p.most, plan)
        answer.bound = of_bits(fastest)
    elif found and objective == BALANCED:
        beam_narrow(&beam, EVENNESS, -bits_of(1), p.most, plan)
    elif found:
        outcome = recut(p, plan)
        answer.bound = least_sum(&beam)
    answer.steps = beam.steps
    beam_end(&beam)
    return outcome
