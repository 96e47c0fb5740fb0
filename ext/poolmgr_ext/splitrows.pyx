# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""The least seconds of every (multiset of classes, prefix): MIN_LATENCY, and MIN_BOTTLENECK with links.

Float addition never turns an order round, so the least value of each cell is enough for the least of all, to the last
bit. A cell is dropped once it and the least that its completion can take (layers divided at will over the fastest of
what is left) exceed a plan that is known; the margin is far more than rounding can be. Ties: `splitties`.
"""

from libc.math cimport INFINITY, NAN
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memset

from poolmgr_ext.splitbounds cimport least_hop, most_of_one
from poolmgr_ext.splitcost cimport START, lowest_bit, slot_of, stage_seconds, uint64_t

cdef double MARGIN = 1e-12  # relative; 64 additions and a division are off by 1e-14
cdef double LARGEST = 1.7e308
cdef int64_t MOST_TABLE = 1 << 20  # stages whose seconds are kept: 8 MB


cdef int rows_begin(Rows *rows, const Problem *p, bint slowest, int64_t most_steps) noexcept nogil:
    cdef Py_ssize_t width = p.layers + 1, table = p.classes * width * width
    cdef int klass
    memset(rows, 0, sizeof(Rows))
    rows.p = p
    rows.slowest = slowest
    rows.ceiling = INFINITY
    rows.better = 1
    rows.most_steps = most_steps
    rows.room_for = 64 * width
    table = table if table <= MOST_TABLE else 0
    rows.row = <Row *> malloc(p.states * p.slots * sizeof(Row))
    rows.value = <double *> malloc(rows.room_for * sizeof(double))
    rows.scratch = <double *> malloc((3 * width + table) * sizeof(double))
    rows.fewest = <uint8_t *> malloc(width + p.classes * width * sizeof(uint16_t) + 8)
    rows.made = <uint8_t *> calloc(p.classes, width)
    if rows.row == NULL or rows.value == NULL or rows.scratch == NULL or rows.fewest == NULL or rows.made == NULL:
        rows_end(rows)
        return NO_MEMORY
    rows.filling = rows.scratch + width
    rows.bound = rows.filling + width
    rows.seconds = rows.bound + width if table else NULL
    rows.reach = <uint16_t *> (rows.fewest + (width + 7) // 8 * 8)
    rows.hop = least_hop(p)
    reaches(p, 0, rows.reach)
    for klass in range(p.classes):
        rows.most_cost[klass] = most_of_one(p, klass)
    fewest_devices(rows)
    return DONE


cdef void rows_end(Rows *rows) noexcept nogil:
    free(rows.row)
    free(rows.value)
    free(rows.threshold)
    free(rows.least)
    free(rows.scratch)
    free(rows.fewest)
    free(rows.made)
    memset(rows, 0, sizeof(Rows))


cdef void reaches(const Problem *p, int64_t headroom, uint16_t *into) noexcept nogil:
    """How far stages may go that leave so much; `first` itself where they may take nothing."""
    cdef int klass, first, end
    cdef int64_t most
    for klass in range(p.classes):
        most = p.room[klass] - headroom
        end = 0
        for first in range(p.layers + 1):
            end = end if end > first else first
            while end < p.layers and p.memory[end + 1] - p.memory[first] <= most:
                end += 1
            into[klass * (p.layers + 1) + first] = end


cdef void fewest_devices(Rows *rows) noexcept nogil:
    """By memory alone: devices with the most room first."""
    cdef const Problem *p = rows.p
    cdef uint64_t left = (<uint64_t> 1 << (p.classes - 1) << 1) - 1, mask
    cdef int prefix = p.layers, count = 0, klass, best, member
    cdef int64_t room = 0
    rows.fewest[p.layers] = 0
    prefix = p.layers - 1
    while left and prefix >= 0:
        best, mask = lowest_bit(left), left
        while mask:
            klass = lowest_bit(mask)
            mask &= mask - 1
            best = klass if p.room[klass] > p.room[best] else best
        left &= ~(<uint64_t> 1 << best)
        for member in range(p.size[best]):
            room += p.room[best]
            count += 1
            while prefix >= 0 and p.memory[p.layers] - p.memory[prefix] <= room:
                rows.fewest[prefix] = count
                prefix -= 1
    for prefix in range(prefix, -1, -1):
        rows.fewest[prefix] = 255


cdef const double *seconds_from(Rows *rows, int klass, int first) noexcept nogil:
    """By `end`: seconds of the stage of layers `first` to before `end`, without its hop."""
    cdef const Problem *p = rows.p
    cdef Py_ssize_t width = p.layers + 1
    cdef double *row = rows.scratch
    cdef double bandwidth = p.bandwidth[klass]
    cdef int64_t begin = p.cost[first]
    cdef int end
    if rows.seconds != NULL:
        row = rows.seconds + (klass * width + first) * width
        if rows.made[klass * width + first]:
            return row
        rows.made[klass * width + first] = True
    for end in range(first + 1, rows.reach[klass * width + first] + 1):
        row[end] = <double> (p.cost[end] - begin) / bandwidth
    return row


cdef bint exceeds(const Rows *rows, double seconds) noexcept nogil:
    """Whether what takes at least so long cannot be (part of) what is looked for, whatever rounding did."""
    seconds = seconds if seconds < LARGEST else LARGEST
    return seconds * (1 - MARGIN) - 1e-300 > rows.ceiling * rows.better


cdef int left_of(const Problem *p, int state, int klass) noexcept nogil:
    """Devices of a class that are not used yet. Most classes have one: no division."""
    if not p.spare[state] >> klass & 1:
        return 0
    if p.size[klass] == 1:
        return 1
    return p.size[klass] - state // p.stride[klass] % (p.size[klass] + 1)


cdef int64_t share_left(const Rows *rows, int state, int klass) noexcept nogil:
    """Bytes read per token that the devices of a class that are not used yet can take; no more than there are."""
    cdef const Problem *p = rows.p
    cdef int64_t all_bytes = p.cost[p.layers], most = rows.most_cost[klass]
    cdef int left = left_of(p, state, klass)
    if left <= 1:
        return most * left
    return all_bytes if most > all_bytes // left else left * most


cdef int suffix_bounds(Rows *rows, int state) noexcept nogil:
    """Fills `bound` from the last prefix down to the first that is worth looking at, and returns that."""
    cdef const Problem *p = rows.p
    cdef int prefix, klass = 0
    cdef int most = p.most - p.used[state]
    cdef int64_t rest, begin = 0, share
    cdef double spent = 0, bound
    share = share_left(rows, state, 0)
    for prefix in range(p.layers, -1, -1):
        rest = p.cost[p.layers] - p.cost[prefix]
        while rest - begin > share:  # more than this class can take
            if share > 0:
                spent += <double> share / p.bandwidth[klass]
                begin += share
            klass += 1
            if klass == p.classes:
                return prefix + 1
            share = share_left(rows, state, klass)
        bound = spent + <double> (rest - begin) / p.bandwidth[klass] + rows.hop * rows.fewest[prefix]
        if rows.fewest[prefix] > most or exceeds(rows, bound):
            return prefix + 1
        rows.bound[prefix] = bound
    return 0


cdef int suffix_bounds_slowest(Rows *rows, int state) noexcept nogil:
    """The same where the slowest stage counts: all that are left work at the same time."""
    cdef const Problem *p = rows.p
    cdef int prefix, klass
    cdef int most = p.most - p.used[state]
    cdef double together = 0, bound
    for klass in range(p.classes):
        together += p.bandwidth[klass] * left_of(p, state, klass)
    for prefix in range(p.layers, -1, -1):
        if rows.fewest[prefix] > most:
            return prefix + 1
        bound = 0
        if prefix < p.layers:
            if together == 0:
                return prefix + 1
            bound = <double> (p.cost[p.layers] - p.cost[prefix]) / together + rows.hop
        if exceeds(rows, bound):
            return prefix + 1
        rows.bound[prefix] = bound
    return 0


cdef void extend(Rows *rows, const Row *before, int klass, double hop, int first) noexcept nogil:
    """Puts one more stage, that ends at `first` or later, after every prefix of a row."""
    cdef int begin, end, top
    cdef double value, one
    cdef double *filling = rows.filling
    cdef const double *seconds
    for begin in range(before.low, before.high + 1):
        value = rows.value[before.at + begin - before.low]
        top = rows.reach[klass * (rows.p.layers + 1) + begin] + 1
        end = begin + 1 if begin + 1 > first else first
        if value != value or end >= top:
            continue
        seconds = seconds_from(rows, klass, begin)
        rows.steps += top - end + 4
        if rows.slowest:
            for end in range(end, top):
                one = seconds[end] + hop
                one = one if one > value else value
                filling[end] = filling[end] if filling[end] <= one else one
        else:
            for end in range(end, top):
                one = value + (seconds[end] + hop)
                filling[end] = filling[end] if filling[end] <= one else one


cdef int keep(Rows *rows, Row *row, int first) noexcept nogil:
    """Stores what is worth it of the row that was made, from prefix `first` on."""
    cdef int prefix, low = -1, high = -1, layers = rows.p.layers
    cdef double value
    cdef double *larger
    row.low, row.high, row.at, row.alive = 0, -1, rows.cells, False
    for prefix in range(first, layers + 1):
        value = rows.filling[prefix]
        if value != value:
            continue
        if exceeds(rows, combined(rows, value, rows.bound[prefix])):
            rows.filling[prefix] = NAN
            continue
        low = prefix if low < 0 else low
        high = prefix
    if low < 0:
        return DONE
    if rows.cells + high - low + 1 > rows.room_for:
        if rows.room_for * 2 > MOST_CELLS:
            return TOO_MUCH
        larger = <double *> realloc(rows.value, rows.room_for * 2 * sizeof(double))
        if larger == NULL:
            return NO_MEMORY
        rows.value = larger
        rows.room_for *= 2
    memcpy(rows.value + rows.cells, rows.filling + low, (high - low + 1) * sizeof(double))
    rows.cells += high - low + 1
    row.low, row.high = low, high
    if high == layers and rows.filling[layers] < rows.ceiling:
        rows.ceiling = rows.filling[layers]
    return DONE


cdef bint has_before(const Rows *rows, int state) noexcept nogil:
    """Whether there is a row that one more device leads on from."""
    cdef const Problem *p = rows.p
    cdef uint64_t mask = p.present[state]
    cdef int slot, index
    while mask:
        index = (state - p.stride[lowest_bit(mask)]) * p.slots
        mask &= mask - 1
        for slot in range(p.slots):
            if rows.row[index + slot].low <= rows.row[index + slot].high:
                return True
    return False


cdef int forward(Rows *rows) noexcept nogil:
    """Fills the rows. `ceiling` is then the least of all plans, where one was found."""
    cdef const Problem *p = rows.p
    cdef int state, klass, slot, first, prefix, outcome, from_slot
    cdef uint64_t mask
    cdef Row *row
    cdef const Row *before
    for state in range(p.states * p.slots):
        rows.row[state].high = -1
        rows.row[state].low = 0
        rows.row[state].alive = False
    rows.value[0] = 0
    rows.row[0].at = 0
    rows.row[0].high = 0
    rows.cells = 1
    for state in range(1, p.states):
        if p.used[state] > p.most:
            continue
        if rows.steps > rows.most_steps:
            return TOO_MUCH
        rows.steps += 4
        if not has_before(rows, state):
            continue
        first = suffix_bounds_slowest(rows, state) if rows.slowest else suffix_bounds(rows, state)
        if first > p.layers:
            continue
        mask = p.present[state]
        for prefix in range(first, p.layers + 1):
            rows.filling[prefix] = NAN
        while mask:
            klass = lowest_bit(mask)
            mask &= mask - 1
            slot = slot_of(p, klass)
            for from_slot in range(p.slots):
                before = &rows.row[(state - p.stride[klass]) * p.slots + from_slot]
                extend(rows, before, klass, p.hop[from_slot * p.classes + klass], first)
            if p.linked or not mask:
                outcome = keep(rows, &rows.row[state * p.slots + slot], first)
                if outcome != DONE:
                    return outcome
                if mask:
                    for prefix in range(first, p.layers + 1):
                        rows.filling[prefix] = NAN
    return DONE


cdef int final_row(const Rows *rows, const double *cells, int count, double most) noexcept nogil:
    """Of the fewest devices (or of `count` where that is above 0) that hold all layers in at most `most`; -1: none."""
    cdef const Problem *p = rows.p
    cdef int index, found = -1
    cdef const Row *row
    for index in range(p.states * p.slots):
        row = &rows.row[index]
        if row.high != p.layers or row.low > row.high or not cells[row.at + row.high - row.low] <= most:
            continue
        if count > 0 and p.used[index // p.slots] != count:
            continue
        if found < 0 or p.used[index // p.slots] < p.used[found // p.slots]:
            found = index
    return found


cdef bint walk_back(Rows *rows, const double *cells, const uint16_t *reach, int index, Plan *plan) noexcept nogil:
    """The plan of a final row: backwards by whatever stage gives the value that was kept.

    False, and `plan` stays: nothing gives it, which only a compiler that changes sums can bring about.
    """
    cdef const Problem *p = rows.p
    cdef int state = index // p.slots, slot = index % p.slots, end = p.layers, place, first = 0, klass = 0
    cdef double value
    cdef uint64_t mask
    cdef Plan found
    cdef bint known
    found.count = p.used[state]
    for place in range(found.count - 1, -1, -1):
        value = cells[rows.row[index].at + end - rows.row[index].low]
        mask, known = p.present[state], False
        while mask and not known:
            klass = lowest_bit(mask)
            mask &= mask - 1
            known = (slot == START or slot == klass + 1) and predecessor(
                rows, cells, reach, klass, state - p.stride[klass], end, value, &index, &first)
        if not known:
            return False
        found.klass[place] = klass
        found.end[place] = end
        state -= p.stride[klass]
        slot = index % p.slots
        end = first
    plan[0] = found
    return True


cdef bint predecessor(Rows *rows, const double *cells, const uint16_t *reach, int klass, int state, int end,
                      double value, int *index, int *first) noexcept nogil:
    cdef const Problem *p = rows.p
    cdef int slot, begin
    cdef const Row *row
    cdef double before
    for slot in range(p.slots):
        row = &rows.row[state * p.slots + slot]
        for begin in range(row.low, row.high + 1):
            if begin >= end or reach[klass * (p.layers + 1) + begin] < end:
                continue
            before = cells[row.at + begin - row.low]
            if combined(rows, before, stage_seconds(p, slot, klass, begin, end)) == value:
                index[0] = state * p.slots + slot
                first[0] = begin
                return True
    return False


cdef void greedy(Rows *rows, Plan *plan) noexcept nogil:
    """The fastest device first, each as full as can be: a plan to begin with. `count` 0 where that holds not all."""
    cdef const Problem *p = rows.p
    cdef int klass, member, first = 0, end
    plan.count = 0
    for klass in range(p.classes):
        for member in range(p.size[klass]):
            end = rows.reach[klass * (p.layers + 1) + first]
            if first == p.layers or end == first or plan.count == p.most:
                continue
            plan.klass[plan.count] = klass
            plan.end[plan.count] = first = end
            plan.count += 1
    if first < p.layers:
        plan.count = 0
