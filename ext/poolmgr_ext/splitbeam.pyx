# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""A bounded search, level by level of devices used, where there are too many states: good plans, nothing proved."""

from libc.math cimport INFINITY
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from poolmgr_ext.splitbounds cimport least_hop, most_of_one
from poolmgr_ext.splitcost cimport MOST_DEVICES, START, lowest_bit, slot_of, stage_seconds
from poolmgr_ext.splitlattice cimport HEADROOM, SECONDS, ask, extensions, most_bytes, worst

cdef int64_t CLOSE = <int64_t> 1 << 32  # between bit patterns: a relative 1e-6
cdef int64_t MOST_RECUT = 50000000  # stages that are looked at


cdef int beam_begin(Beam *beam, Sweep *sweep, bint adds) noexcept nogil:
    cdef const Problem *p = sweep.p
    memset(beam, 0, sizeof(Beam))
    beam.p, beam.sweep, beam.adds = p, sweep, adds
    beam.hop = least_hop(p)
    beam.nodes = <Node *> malloc((1 + BEAM * (MOST_DEVICES + 1)) * sizeof(Node))
    beam.most_cost = <int64_t *> malloc((p.slots + 1) * p.classes * sizeof(int64_t))
    if beam.nodes == NULL or beam.most_cost == NULL:
        beam_end(beam)
        return -1
    beam.one_device = beam.most_cost + p.slots * p.classes
    return 0


cdef void beam_end(Beam *beam) noexcept nogil:
    free(beam.nodes)
    free(beam.most_cost)
    beam.nodes, beam.most_cost = NULL, NULL


cdef void prepare(Beam *beam) noexcept nogil:
    """For bounds that were set anew."""
    cdef const Problem *p = beam.p
    cdef int klass, slot
    extensions(beam.sweep)
    for klass in range(p.classes):
        for slot in range(p.slots):
            beam.most_cost[slot * p.classes + klass] = (
                p.cost[p.layers] if beam.sweep.seconds == INFINITY
                else most_bytes(beam.sweep, SECONDS, slot, klass, p.cost[p.layers]))
        if beam.adds:
            beam.one_device[klass] = most_of_one(p, klass)


cdef int last_within(const int64_t *sums, int first, int layers, int64_t most) noexcept nogil:
    """The last place whose sum is at most `most` above that of `first`; `first` where `most` is below 0."""
    cdef int low = first, high = layers, middle
    if most < 0:
        return first
    while low < high:
        middle = (low + high + 1) // 2
        if sums[middle] - sums[first] <= most:
            low = middle
        else:
            high = middle - 1
    return low


cdef int farthest(const Beam *beam, const Node *node, int klass) noexcept nogil:
    """One past the last layer of the longest next stage; its first where there is none."""
    cdef const Problem *p = beam.p
    cdef const Sweep *sweep = beam.sweep
    cdef int first = node.prefix, by_cost, by_memory
    cdef int64_t room
    if not p.linked:
        by_cost = sweep.next[klass * (p.layers + 2) + first]
        return by_cost if by_cost > first else first
    room = p.room[klass] - sweep.headroom
    room = sweep.most_memory[klass] if sweep.most_memory[klass] < room else room
    by_memory = last_within(p.memory, first, p.layers, room)
    by_cost = last_within(p.cost, first, p.layers, beam.most_cost[(node.klass + 1) * p.classes + klass])
    return by_cost if by_cost < by_memory else by_memory


cdef double rest_seconds(const Beam *beam, uint64_t devices, int prefix, double hop) noexcept nogil:
    """What the layers from `prefix` on take at least, layers divided at will, the fastest of what is left first.

    `hop`: of which each device costs the part that is used of it; a bound only where it is 0, else an estimate.
    """
    cdef const Problem *p = beam.p
    cdef double rest = <double> (p.cost[p.layers] - p.cost[prefix]), seconds = 0, share
    cdef int klass, bit
    for klass in range(p.classes):
        for bit in range(p.member_at[klass], p.member_at[klass] + p.size[klass]):
            if rest <= 0:
                return seconds
            if devices >> bit & 1:
                continue
            share = <double> beam.one_device[klass]
            share = share if share < rest else rest
            if share > 0:
                seconds += share / p.bandwidth[klass] + hop * share / <double> beam.one_device[klass]
                rest -= share
    return seconds if rest <= 0 else INFINITY


cdef double least_sum(const Beam *beam) noexcept nogil:
    """Seconds below which no sum is: divided at will, and a hop for each device without which there is no room."""
    cdef const Problem *p = beam.p
    cdef uint64_t left = ~(<uint64_t> 0)
    cdef int klass, best, member, count = 0
    cdef int64_t room = 0
    while room < p.memory[p.layers] or count == 0:
        best = -1
        for klass in range(p.classes):
            if left >> klass & 1 and (best < 0 or p.room[klass] > p.room[best]):
                best = klass
        if best < 0:
            break
        left &= ~(<uint64_t> 1 << best)
        for member in range(p.size[best]):
            if room < p.memory[p.layers] or count == 0:
                room += p.room[best]
                count += 1
    return (rest_seconds(beam, 0, 0, 0) + beam.hop * count) * (1 - 1e-9)


cdef double waste(const Beam *beam, int klass, int first, int end) noexcept nogil:
    """The part of the model that the device could still have held, had the layers been divided as it likes."""
    cdef const Problem *p = beam.p
    cdef double cost = <double> p.cost[p.layers] + 1, memory = <double> p.memory[p.layers] + 1
    cdef double by_cost = (<double> beam.most_cost[klass] - <double> (p.cost[end] - p.cost[first])) / cost
    cdef double by_memory = (<double> (p.room[klass] - beam.sweep.headroom)
                             - <double> (p.memory[end] - p.memory[first])) / memory
    return by_cost if by_cost < by_memory else by_memory


cdef int insert(Node *kept, int count, const Node *node, bint linked) noexcept nogil:
    """Among the best, in order, and one of each set of devices (with links: and last class). How many they are."""
    cdef int place, i
    if count == BEAM and node.score >= kept[count - 1].score:
        return count
    for i in range(count):
        if kept[i].devices == node.devices and (kept[i].klass == node.klass or not linked):
            if kept[i].score <= node.score:
                return count
            for place in range(i, count - 1):
                kept[place] = kept[place + 1]
            count -= 1
            break
    place = count if count < BEAM else BEAM - 1
    while place > 0 and kept[place - 1].score > node.score:
        kept[place] = kept[place - 1]
        place -= 1
    kept[place] = node[0]
    return count + 1 if count < BEAM else BEAM


cdef int expand(Beam *beam, int parent, Node *kept, int count) noexcept nogil:
    """All next stages of one node, each as long as it may be."""
    cdef const Problem *p = beam.p
    cdef const Node *node = &beam.nodes[parent]
    cdef Node following
    cdef int klass, end, bit, slot = node.klass + 1 if p.linked else START
    for klass in range(p.classes):
        beam.steps += 1
        bit = lowest_bit(~(node.devices >> p.member_at[klass]) | <uint64_t> 1 << 63)
        end = farthest(beam, node, klass)
        if bit >= p.size[klass] or end == node.prefix:
            continue
        following.devices = node.devices | <uint64_t> 1 << (p.member_at[klass] + bit)
        following.parent, following.prefix, following.klass = parent, end, klass
        following.seconds = node.seconds + stage_seconds(p, slot, klass, node.prefix, end)
        if beam.adds:
            following.score = following.seconds + rest_seconds(beam, following.devices, end, beam.hop)
        else:
            following.score = node.score + waste(beam, klass, node.prefix, end)
        count = insert(kept, count, &following, p.linked)
    return count


cdef bint beam_attempt(Beam *beam, int most, Plan *plan) noexcept nogil:
    """Whether a plan under the bounds was found: of the fewest devices, or where seconds are added of the least sum."""
    cdef const Problem *p = beam.p
    cdef int begin = 0, count = 1, level, node, kept, best = -1
    prepare(beam)
    memset(beam.nodes, 0, sizeof(Node))
    beam.nodes[0].klass, beam.nodes[0].parent = -1, -1
    for level in range(most):
        kept = 0
        for node in range(begin, begin + count):
            if beam.nodes[node].prefix < p.layers:
                kept = expand(beam, node, beam.nodes + begin + count, kept)
        begin, count = begin + count, kept
        for node in range(begin, begin + count):
            if beam.nodes[node].prefix == p.layers and (
                    best < 0 or beam.nodes[node].seconds < beam.nodes[best].seconds):
                best = node
        if best >= 0 and not beam.adds:
            break
    if best < 0:
        return False
    plan.count = 0
    node = best
    while beam.nodes[node].parent >= 0:
        plan.count += 1
        node = beam.nodes[node].parent
    for level in range(plan.count - 1, -1, -1):
        plan.klass[level], plan.end[level] = beam.nodes[best].klass, beam.nodes[best].prefix
        best = beam.nodes[best].parent
    return True


cdef void beam_narrow(Beam *beam, Measure measure, int64_t low, int most, Plan *plan) noexcept nogil:
    """As `splitlattice.narrow`, nearly: what was not found may be there. Bounds are left at what was found."""
    cdef int64_t high = worst(beam.p, measure, plan), middle
    cdef int asked
    for asked in range(MOST_ASKED):
        if high - low <= (1 if measure == HEADROOM else CLOSE):
            break
        middle = low + (high - low) // 2
        ask(beam.sweep, measure, middle)
        if beam_attempt(beam, most, plan):
            high = worst(beam.p, measure, plan)
        else:
            low = middle
    ask(beam.sweep, measure, high)


cdef int recut(const Problem *p, Plan *plan) noexcept nogil:
    """The least sum in the order of a plan. -1: no memory; a plan too long to look at stays."""
    cdef Py_ssize_t width = p.layers + 1
    cdef int place, begin, end, slot, best
    cdef int64_t steps = 0
    cdef double one, least
    cdef double *tail = <double *> malloc((plan.count + 1) * width * sizeof(double))
    if tail == NULL:
        return -1
    for end in range(width):
        tail[plan.count * width + end] = 0 if end == p.layers else INFINITY
    for place in range(plan.count - 1, -1, -1):
        slot = slot_of(p, plan.klass[place - 1]) if place > 0 else START
        for begin in range(width):
            least = INFINITY
            for end in range(begin + 1, width):
                if p.memory[end] - p.memory[begin] > p.room[plan.klass[place]]:
                    break
                steps += 1
                one = stage_seconds(p, slot, plan.klass[place], begin, end) + tail[(place + 1) * width + end]
                least = one if one < least else least
            tail[place * width + begin] = least
        if steps > MOST_RECUT:
            free(tail)
            return 0
    begin = 0
    for place in range(plan.count if tail[0] < INFINITY else 0):
        slot = slot_of(p, plan.klass[place - 1]) if place > 0 else START
        least, best = INFINITY, plan.end[place]
        for end in range(begin + 1, width):
            if p.memory[end] - p.memory[begin] > p.room[plan.klass[place]]:
                break
            one = stage_seconds(p, slot, plan.klass[place], begin, end) + tail[(place + 1) * width + end]
            if one < least:
                least, best = one, end
        plan.end[place] = begin = best
    free(tail)
    return 0
