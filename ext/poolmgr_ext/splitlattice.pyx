# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Objectives that bound every stage by itself (MIN_BOTTLENECK, BALANCED, MAX_CONTEXT, and headroom as a tie), no links.

Under bounds it never hurts that an earlier stage takes more layers, so each multiset of device classes needs only its
longest prefix, and one sweep over all of them decides whether the bounds can be kept. The best bound is found exactly:
a sweep that succeeds has a plan with a real value, one that fails names the nearest value that it refused, and between
the two the middle is asked, by bit pattern, so that the interval halves: at most 64 sweeps whatever the numbers are.
"""

from libc.math cimport INFINITY
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from poolmgr_ext.splitcost cimport (
    MOST_DEVICES, MOST_STATES, START, bits_of, evenness_of, lowest_bit, of_bits, slot_of, stage_seconds)

cdef int MOST_PROBES = 128  # each halves what is left of 63 bits: none needs as many
cdef int64_t NEVER = (<int64_t> 1 << 62) + ((<int64_t> 1 << 62) - 1)


cdef int lattice_begin(Problem *p) noexcept nogil:
    """Lists the states of a problem whose classes are set; `states` 0 where they are too many. -1: no memory."""
    cdef int64_t count = 1
    cdef int klass, state, digit
    cdef int[MOST_DEVICES] digits
    p.states = 0
    for klass in range(p.classes):
        p.stride[klass] = <int> count
        count *= p.size[klass] + 1
        if count * p.slots > MOST_STATES:
            return 0
    p.states = <int> count
    p.present = <uint64_t *> malloc(2 * count * sizeof(uint64_t) + count)
    if p.present == NULL:
        return -1
    p.spare = p.present + count
    p.used = <uint8_t *> (p.spare + count)
    memset(digits, 0, sizeof(digits))
    for state in range(p.states):
        p.present[state] = p.spare[state] = 0
        p.used[state] = 0
        for klass in range(p.classes):
            digit = digits[klass]
            p.used[state] += digit
            p.present[state] |= <uint64_t> (digit > 0) << klass
            p.spare[state] |= <uint64_t> (digit < p.size[klass]) << klass
        for klass in range(p.classes):  # count on
            digits[klass] += 1
            if digits[klass] <= p.size[klass]:
                break
            digits[klass] = 0
    return 0


cdef void lattice_end(Problem *p) noexcept nogil:
    free(p.present)
    p.present = NULL


cdef int sweep_begin(Sweep *sweep, const Problem *p) noexcept nogil:
    """Without bounds but that it fits. -1: no memory."""
    cdef Py_ssize_t row = p.layers + 2
    memset(sweep, 0, sizeof(Sweep))
    sweep.p = p
    sweep.seconds = INFINITY
    sweep.next = <uint16_t *> malloc((2 * p.classes * row + 2 * p.states) * sizeof(uint16_t) + row)
    if sweep.next == NULL:
        return -1
    sweep.back = sweep.next + p.classes * row
    sweep.reached = sweep.back + p.classes * row
    sweep.missing = sweep.reached + p.states
    sweep.seen = <uint8_t *> (sweep.missing + p.states)
    return 0


cdef void sweep_end(Sweep *sweep) noexcept nogil:
    free(sweep.next)
    sweep.next = NULL


cdef int64_t rank(const Problem *p, Measure measure, int slot, int klass, int first, int end) noexcept nogil:
    """What a stage is worth by that measure: smaller is better."""
    cdef int64_t left = p.room[klass] - (p.memory[end] - p.memory[first])
    if measure == SECONDS:
        return bits_of(stage_seconds(p, slot, klass, first, end))
    if measure == HEADROOM:
        return -left
    return -bits_of(evenness_of(left, p.free[klass]))


cdef int64_t worst(const Problem *p, Measure measure, const Plan *plan) noexcept nogil:
    cdef int64_t found = -NEVER, one
    cdef int place, first = 0, slot = START
    for place in range(plan.count):
        one = rank(p, measure, slot, plan.klass[place], first, plan.end[place])
        found = one if one > found else found
        first = plan.end[place]
        slot = slot_of(p, plan.klass[place])
    return found


cdef bint keeps(const Sweep *sweep, Measure measure, int slot, int klass, int64_t bytes) noexcept nogil:
    """Whether a stage of so many bytes keeps to that bound."""
    cdef const Problem *p = sweep.p
    if measure == SECONDS:
        return <double> bytes / p.bandwidth[klass] + p.hop[slot * p.classes + klass] <= sweep.seconds
    return evenness_of(p.room[klass] - bytes, p.free[klass]) >= sweep.evenness


cdef int64_t most_bytes(const Sweep *sweep, Measure measure, int slot, int klass, int64_t most) noexcept nogil:
    """The most bytes, up to `most`, with which a stage keeps to that bound; -1 where it does not with none.

    Exact: from a guess in doubling steps, then by halves.
    """
    cdef const Problem *p = sweep.p
    cdef int64_t low = 0, high = most, step = 1, guess
    cdef double near
    if most < 0 or not keeps(sweep, measure, slot, klass, 0):
        return -1
    if keeps(sweep, measure, slot, klass, most):
        return most
    if measure == SECONDS:
        near = (sweep.seconds - p.hop[slot * p.classes + klass]) * p.bandwidth[klass]
    else:
        near = <double> p.room[klass] - sweep.evenness * <double> p.free[klass]
    guess = <int64_t> near if 0 <= near < <double> most else most // 2
    while low + 1 < high:  # `low` keeps, `high` does not
        if not low < guess < high:
            guess = low + (high - low) // 2
        if keeps(sweep, measure, slot, klass, guess):
            low = guess
            guess = low + step
        else:
            high = guess
            guess = high - step
        step = step * 2 if step < most // 4 else step
    return low


cdef void ask(Sweep *sweep, Measure measure, int64_t value) noexcept nogil:
    """Sets one bound, as `rank` counts it."""
    if measure == SECONDS:
        sweep.seconds = of_bits(value)
    elif measure == HEADROOM:
        sweep.headroom = -value
    else:
        sweep.evenness = of_bits(-value)


cdef void extensions(Sweep *sweep) noexcept nogil:
    """Fills `next` for the bounds."""
    cdef const Problem *p = sweep.p
    cdef int layers = p.layers, klass, first, end
    cdef const int64_t *cost = p.cost
    cdef const int64_t *memory = p.memory
    cdef int64_t most_cost, most_memory
    cdef uint16_t *row
    for klass in range(p.classes):
        most_cost = cost[layers]
        if sweep.seconds < INFINITY:
            most_cost = most_bytes(sweep, SECONDS, START, klass, cost[layers])
        most_memory = p.room[klass] - sweep.headroom
        sweep.most_cost[klass] = most_cost
        sweep.most_memory[klass] = p.room[klass]
        if sweep.evenness > 0:
            sweep.most_memory[klass] = most_bytes(sweep, EVENNESS, START, klass, p.room[klass])
        if sweep.most_memory[klass] < most_memory:
            most_memory = sweep.most_memory[klass]
        row = sweep.next + klass * (layers + 2)
        end = 0
        for first in range(layers):
            while (end < layers and cost[end + 1] - cost[first] <= most_cost
                   and memory[end + 1] - memory[first] <= most_memory):
                end += 1
            row[first] = end if end > first else 0
            end = end if end > first else first + 1
        row[layers] = row[layers + 1] = 0


cdef int reach(Sweep *sweep, int most, bint fewest) noexcept nogil:
    """A state of at most `most` devices that holds all layers, -1 where there is none: the first, or of the fewest."""
    cdef const Problem *p = sweep.p
    cdef int layers = p.layers, state = 0, klass, found = -1
    cdef Py_ssize_t row = layers + 2
    cdef uint16_t end, longest
    cdef uint64_t mask
    cdef uint16_t *reached = sweep.reached
    reached[0] = 0
    for state in range(1, p.states):
        longest = 0
        if p.used[state] <= most:
            mask = p.present[state]
            while mask:
                klass = lowest_bit(mask)
                mask &= mask - 1
                end = sweep.next[klass * row + reached[state - p.stride[klass]]]
                longest = end if end > longest else longest
        reached[state] = longest if longest else layers + 1
        if longest == layers:
            if not fewest:
                found = state
                break
            if found < 0 or p.used[state] < p.used[found]:
                found = state
    sweep.steps += state
    return found


cdef void trace(const Sweep *sweep, int state, Plan *plan) noexcept nogil:
    """Backwards from a state that `reach` has found."""
    cdef const Problem *p = sweep.p
    cdef int place, klass
    cdef uint64_t mask
    plan.count = p.used[state]
    for place in range(plan.count - 1, -1, -1):
        mask = p.present[state]
        while True:
            klass = lowest_bit(mask)
            mask &= mask - 1
            if sweep.next[klass * (p.layers + 2) + sweep.reached[state - p.stride[klass]]] == sweep.reached[state]:
                break
        plan.klass[place] = klass
        plan.end[place] = sweep.reached[state]
        state -= p.stride[klass]


cdef bint attempt(Sweep *sweep, int most, bint fewest, Plan *plan) noexcept nogil:
    """Whether some plan keeps to the bounds, and one that does."""
    cdef int state
    extensions(sweep)
    sweep.steps += sweep.p.classes * sweep.p.layers
    state = reach(sweep, most, fewest)
    if state >= 0:
        trace(sweep, state, plan)
    return state >= 0


cdef int64_t refused(Sweep *sweep, Measure measure, int most) noexcept nogil:
    """After a sweep that found none: the best rank by which that one bound alone kept a stage from one more layer.

    Until the bound allows it every prefix stays as it is.
    """
    cdef const Problem *p = sweep.p
    cdef int state, klass, first, end
    cdef int64_t found = NEVER, one, cost, memory
    memset(sweep.seen, 0, p.layers + 2)
    for state in range(p.states):
        sweep.seen[sweep.reached[state]] |= p.used[state] < most
    for klass in range(p.classes):
        for first in range(p.layers):
            if not sweep.seen[first]:
                continue
            end = sweep.next[klass * (p.layers + 2) + first]
            end = end + 1 if end else first + 1
            if end > p.layers:
                continue
            cost = p.cost[end] - p.cost[first]
            memory = p.memory[end] - p.memory[first]
            if ((measure == SECONDS or cost <= sweep.most_cost[klass])
                    and (measure == EVENNESS or memory <= sweep.most_memory[klass])
                    and (measure == HEADROOM or memory <= p.room[klass] - sweep.headroom)):
                one = rank(p, measure, START, klass, first, end)
                found = one if one < found else found
    return found


cdef int64_t narrow(Sweep *sweep, Measure measure, int64_t low, int most, Plan *plan) noexcept nogil:
    """The least rank that all stages can keep to, set as a bound. `plan`: one that keeps to the others; `low`: what
    cannot be beaten."""
    cdef int64_t high = worst(sweep.p, measure, plan), asked
    cdef int probe
    # Mostly headroom is a tie that nobody can better.
    asked = high - 1 if measure == HEADROOM else low + (high - low) // 2
    for probe in range(MOST_PROBES):
        if low >= high:
            break
        ask(sweep, measure, asked)
        if attempt(sweep, most, False, plan):
            high = worst(sweep.p, measure, plan)
        else:
            low = refused(sweep, measure, most)
        asked = low + (high - low) // 2
    ask(sweep, measure, high)
    return high


cdef void backward(Sweep *sweep, int count) noexcept nogil:
    """Fills `missing` for plans of `count` devices under the bounds, from what `extensions` has left."""
    cdef const Problem *p = sweep.p
    cdef Py_ssize_t row = p.layers + 2
    cdef int state, klass, first, end, done
    cdef uint16_t one, least
    cdef uint64_t mask
    for klass in range(p.classes):
        for end in range(p.layers + 1):
            sweep.back[klass * row + end] = end
        done = 0
        for first in range(p.layers):  # `next` never falls
            for end in range((done if done > first else first) + 1, sweep.next[klass * row + first] + 1):
                sweep.back[klass * row + end] = first
                done = end
    for state in range(p.states - 1, -1, -1):
        least = p.layers
        if p.used[state] < count:
            mask = p.spare[state]
            while mask:
                klass = lowest_bit(mask)
                mask &= mask - 1
                one = sweep.back[klass * row + sweep.missing[state + p.stride[klass]]]
                least = one if one < least else least
        sweep.missing[state] = least


cdef void first_order(Sweep *sweep, int count, Plan *plan) noexcept nogil:
    """Of `count` devices, the fewest that can keep to the bounds: the first order that does, each stage at its longest.

    With fewer it could not be done, so no stage is empty.
    """
    cdef const Problem *p = sweep.p
    cdef int place, klass, best, state = 0, first = 0, end
    cdef int[MOST_DEVICES] taken
    cdef Plan found
    extensions(sweep)
    backward(sweep, count)
    memset(taken, 0, sizeof(taken))
    found.count = count
    for place in range(count):
        best = -1
        for klass in range(p.classes):
            if taken[klass] == p.size[klass]:
                continue
            end = sweep.next[klass * (p.layers + 2) + first]
            if end <= first or end < sweep.missing[state + p.stride[klass]]:
                continue
            if best < 0 or (p.member[p.member_at[klass] + taken[klass]] < p.member[p.member_at[best] + taken[best]]):
                best = klass
        if best < 0:
            return  # no such order: `plan` stays
        found.klass[place] = best
        found.end[place] = first = sweep.next[best * (p.layers + 2) + first]
        state += p.stride[best]
        taken[best] += 1
    plan[0] = found
