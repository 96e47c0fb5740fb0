# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""Of all plans with the least seconds: the fewest devices, the most headroom, the first order, the longest first cuts.

Sums that differ in their last bit may become equal with the next stage, so one best value per cell cannot decide ties.
What decides them is the threshold of a cell: the most seconds up to there, to the last bit, from which some completion
is still no worse than the least of all. What is at most its threshold is part of a best plan; mostly few cells are.
"""

from libc.math cimport NAN
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from poolmgr_ext.splitcost cimport MOST_DEVICES, START, bits_of, lowest_bit, of_bits, slot_of, stage_seconds, uint64_t
from poolmgr_ext.splitrows cimport CONTRADICTION, DONE, NO_MEMORY, TOO_MUCH, combined, final_row, reaches, walk_back

cdef int MOST_PROBES = 128


cdef int settle(Rows *rows, Plan *plan) noexcept nogil:
    """After `forward`, which has found a plan. TOO_MUCH: `plan` is one of the best, its ties are not all settled."""
    cdef const Problem *p = rows.p
    cdef Ties ties
    cdef Plan made
    cdef int index = final_row(rows, rows.value, 0, rows.ceiling), outcome = DONE
    cdef Py_ssize_t width = p.layers + 1
    if not walk_back(rows, rows.value, rows.reach, index, plan):
        return CONTRADICTION
    if rows.steps > rows.most_steps:
        return TOO_MUCH
    ties.rows, ties.count, ties.best = rows, plan.count, rows.ceiling
    rows.threshold = <double *> malloc(rows.cells * sizeof(double))
    rows.least = <double *> malloc(rows.cells * sizeof(double))
    ties.frontier = <double *> malloc(2 * (ties.count + 1) * width * sizeof(double) + p.classes * width * 2)
    if rows.threshold == NULL or rows.least == NULL or ties.frontier == NULL:
        free(ties.frontier)
        return NO_MEMORY
    ties.tail = ties.frontier + (ties.count + 1) * width
    ties.reach = <uint16_t *> (ties.tail + (ties.count + 1) * width)
    most_headroom(&ties, plan)
    made = plan[0]
    if rows.steps <= rows.most_steps and first_order(&ties, &made) and longest_cuts(&ties, &made):
        plan[0] = made
    else:
        outcome = TOO_MUCH
    free(ties.frontier)
    return outcome


cdef double highest(const Rows *rows, double value, double stage, double most) noexcept nogil:
    """The most seconds that with `stage` added are still at most `most`; `value` is known to be."""
    cdef int64_t low, high, middle
    if combined(rows, most, stage) <= most:
        return most
    low, high = bits_of(value), bits_of(most)
    while low + 1 < high:
        middle = low + (high - low) // 2
        if combined(rows, of_bits(middle), stage) <= most:
            low = middle
        else:
            high = middle
    return of_bits(low)


cdef void thresholds(Ties *ties) noexcept nogil:
    """Backwards from the plans that are best, under the reach that is set."""
    cdef Rows *rows = ties.rows
    cdef const Problem *p = rows.p
    cdef int64_t cell
    cdef int index, state, slot, klass, from_slot
    cdef uint64_t mask
    cdef Row *row
    for cell in range(rows.cells):
        rows.threshold[cell] = -1
    for index in range(p.states * p.slots):
        row = &rows.row[index]
        row.alive = (row.low <= row.high == p.layers and p.used[index // p.slots] == ties.count
                     and rows.value[row.at + row.high - row.low] <= ties.best)
        if row.alive:
            rows.threshold[row.at + row.high - row.low] = ties.best
    for index in range(p.states * p.slots - 1, p.slots - 1, -1):
        if not rows.row[index].alive:
            continue
        state, slot = index // p.slots, index % p.slots
        mask = p.present[state] if slot == START else <uint64_t> 1 << (slot - 1)
        while mask:
            klass = lowest_bit(mask)
            mask &= mask - 1
            for from_slot in range(p.slots):
                lower(ties, &rows.row[index], &rows.row[(state - p.stride[klass]) * p.slots + from_slot],
                      from_slot, klass)


cdef void lower(Ties *ties, const Row *row, Row *before, int from_slot, int klass) noexcept nogil:
    """What the thresholds of a row mean for those of a row before it."""
    cdef Rows *rows = ties.rows
    cdef const uint16_t *reach = ties.reach + klass * (rows.p.layers + 1)
    cdef int begin, end
    cdef double most, value, stage
    cdef int64_t cell
    for end in range(row.low, row.high + 1):
        most = rows.threshold[row.at + end - row.low]
        if most < 0:
            continue
        for begin in range(before.high if before.high < end else end - 1, before.low - 1, -1):
            if reach[begin] < end:
                break
            rows.steps += 2
            cell = before.at + begin - before.low
            value = rows.value[cell]
            stage = stage_seconds(rows.p, from_slot, klass, begin, end)
            if combined(rows, value, stage) <= most and rows.threshold[cell] < most:
                value = highest(rows, value, stage, most)
                if value > rows.threshold[cell]:
                    rows.threshold[cell] = value
                    before.alive = True


cdef int least_under_floor(Ties *ties) noexcept nogil:
    """The final row of a best plan that keeps to the reach that is set, -1 where there is none."""
    cdef Rows *rows = ties.rows
    cdef const Problem *p = rows.p
    cdef int64_t cell
    cdef int index
    for cell in range(rows.cells):
        rows.least[cell] = NAN
    rows.least[0] = 0
    ties.refused = -1
    for index in range(p.states * p.slots):
        if rows.row[index].alive:
            spread(ties, index // p.slots, index % p.slots)
    return final_row(rows, rows.least, ties.count, ties.best)


cdef void spread(Ties *ties, int state, int slot) noexcept nogil:
    """From one row to those after it that are alive."""
    cdef Rows *rows = ties.rows
    cdef const Problem *p = rows.p
    cdef const Row *row = &rows.row[state * p.slots + slot]
    cdef const Row *after
    cdef int klass, begin, end, top
    cdef uint64_t mask = p.spare[state]
    cdef int64_t cell, left
    cdef double value, one
    while mask:
        klass = lowest_bit(mask)
        mask &= mask - 1
        after = &rows.row[(state + p.stride[klass]) * p.slots + slot_of(p, klass)]
        if not after.alive:
            continue
        for begin in range(row.low, row.high + 1):
            value = rows.least[row.at + begin - row.low]
            if value != value:
                continue
            top = ties.reach[klass * (p.layers + 1) + begin]
            if top < p.layers:
                left = p.room[klass] - (p.memory[top + 1] - p.memory[begin])
                ties.refused = left if left > ties.refused else ties.refused
            top = top if top < after.high else after.high
            for end in range(begin + 1 if begin + 1 > after.low else after.low, top + 1):
                rows.steps += 2
                cell = after.at + end - after.low
                one = combined(rows, value, stage_seconds(p, slot, klass, begin, end))
                if one <= rows.threshold[cell] and not rows.least[cell] <= one:
                    rows.least[cell] = one


cdef int64_t headroom_of(const Problem *p, const Plan *plan) noexcept nogil:
    cdef int place, first = 0
    cdef int64_t found = (<int64_t> 1 << 62), left
    for place in range(plan.count):
        left = p.room[plan.klass[place]] - (p.memory[plan.end[place]] - p.memory[first])
        found = left if left < found else found
        first = plan.end[place]
    return found


cdef void most_headroom(Ties *ties, Plan *plan) noexcept nogil:
    """The most that the smallest share of a best plan can leave; sets the reach and the thresholds for it."""
    cdef Rows *rows = ties.rows
    cdef int64_t low = headroom_of(rows.p, plan), high = (<int64_t> 1 << 62), asked = low + 1
    cdef int index, probe
    reaches(rows.p, 0, ties.reach)
    thresholds(ties)
    for probe in range(MOST_PROBES):
        if low >= high or rows.steps > rows.most_steps:
            break
        reaches(rows.p, asked, ties.reach)
        index = least_under_floor(ties)
        if index >= 0 and walk_back(rows, rows.least, ties.reach, index, plan):
            low = headroom_of(rows.p, plan)
        else:
            high = ties.refused
        asked = low + (high - low + 1) // 2
    reaches(rows.p, low, ties.reach)
    thresholds(ties)


cdef bint first_order(Ties *ties, Plan *plan) noexcept nogil:
    """Device by device the first that still leads to a best plan; the cuts of `plan` are those of another order then.

    False: given up.
    """
    cdef Rows *rows = ties.rows
    cdef const Problem *p = rows.p
    cdef int place, klass, next_klass, state = 0, slot = START
    cdef uint64_t tried
    cdef int[MOST_DEVICES] taken
    memset(taken, 0, sizeof(taken))
    for place in range(p.layers + 1):
        ties.frontier[place] = NAN
    ties.frontier[0] = 0
    for place in range(ties.count):
        tried = 0
        while True:
            klass = -1
            for next_klass in range(p.classes):
                if tried >> next_klass & 1 or taken[next_klass] == p.size[next_klass]:
                    continue
                if klass < 0 or (p.member[p.member_at[next_klass] + taken[next_klass]]
                                 < p.member[p.member_at[klass] + taken[klass]]):
                    klass = next_klass
            if klass < 0 or rows.steps > rows.most_steps:
                return False
            if leads_on(ties, place, state, slot, klass):
                break
            tried |= <uint64_t> 1 << klass
        plan.klass[place] = klass
        state += p.stride[klass]
        taken[klass] += 1
        slot = slot_of(p, klass)
    return True


cdef bint leads_on(Ties *ties, int place, int state, int slot, int klass) noexcept nogil:
    """Whether a best plan goes on with that class after the order so far; fills the frontier after it."""
    cdef Rows *rows = ties.rows
    cdef const Problem *p = rows.p
    cdef int width = p.layers + 1, begin, end, top
    cdef const double *frontier = ties.frontier + place * width
    cdef double *following = ties.frontier + (place + 1) * width
    cdef const Row *row = &rows.row[(state + p.stride[klass]) * p.slots + slot_of(p, klass)]
    cdef double one
    cdef bint found = False
    if not row.alive:
        return False
    for end in range(width):
        following[end] = NAN
    for begin in range(p.layers):
        if frontier[begin] != frontier[begin]:
            continue
        top = ties.reach[klass * width + begin]
        top = top if top < row.high else row.high
        for end in range(begin + 1 if begin + 1 > row.low else row.low, top + 1):
            rows.steps += 2
            one = combined(rows, frontier[begin], stage_seconds(p, slot, klass, begin, end))
            if one <= rows.threshold[row.at + end - row.low] and not following[end] <= one:
                following[end] = one
                found = True
    return found


cdef void tails(Ties *ties, const Plan *plan) noexcept nogil:
    """Thresholds in one order, from its end."""
    cdef Rows *rows = ties.rows
    cdef const Problem *p = rows.p
    cdef int width = p.layers + 1, place, begin, end, slot
    cdef double most, value, stage
    for end in range((ties.count + 1) * width):
        ties.tail[end] = -1
    ties.tail[ties.count * width + p.layers] = ties.best
    for place in range(ties.count - 1, -1, -1):
        slot = slot_of(p, plan.klass[place - 1]) if place > 0 else START
        for end in range(1, width):
            most = ties.tail[(place + 1) * width + end]
            if most < 0:
                continue
            for begin in range(end - 1, -1, -1):
                if ties.reach[plan.klass[place] * width + begin] < end:
                    break
                value = ties.frontier[place * width + begin]
                stage = stage_seconds(p, slot, plan.klass[place], begin, end)
                rows.steps += 2
                if combined(rows, value, stage) <= most and ties.tail[place * width + begin] < most:
                    value = highest(rows, value, stage, most)
                    if value > ties.tail[place * width + begin]:
                        ties.tail[place * width + begin] = value


cdef bint longest_cuts(Ties *ties, Plan *plan) noexcept nogil:
    """In the order of `plan`: each stage as long as it can be. False: no such plan, which cannot be."""
    cdef const Problem *p = ties.rows.p
    cdef int width = p.layers + 1, place, end, first = 0, slot = START
    cdef double value = 0, one
    tails(ties, plan)
    for place in range(ties.count):
        for end in range(ties.reach[plan.klass[place] * width + first], first, -1):
            one = combined(ties.rows, value, stage_seconds(p, slot, plan.klass[place], first, end))
            if one <= ties.tail[(place + 1) * width + end]:
                break
        else:
            return False
        plan.end[place] = first = end
        value = one
        slot = slot_of(p, plan.klass[place])
    return True
