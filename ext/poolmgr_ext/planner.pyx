# cython: language_level=3, cdivision=True, boundscheck=False, wraparound=False
"""The door to the native search for splits (SPLIT-4): checks, packs, and lets go of the GIL while it searches.

Same answers as the readable twin `poolmgr.core.split_search`, to the last bit and tie, wherever it is proved.
"""

from libc.math cimport INFINITY
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from poolmgr_ext.splitcost cimport MOST_DEVICES, MOST_LAYERS
from poolmgr_ext.splitrows cimport CONTRADICTION
from poolmgr_ext.splitsearch cimport BALANCED as _BALANCED
from poolmgr_ext.splitsearch cimport MAX_CONTEXT as _MAX_CONTEXT
from poolmgr_ext.splitsearch cimport MIN_BOTTLENECK as _MIN_BOTTLENECK
from poolmgr_ext.splitsearch cimport MIN_LATENCY as _MIN_LATENCY
from poolmgr_ext.splitsearch cimport find

MIN_LATENCY = <int> _MIN_LATENCY
MIN_BOTTLENECK = <int> _MIN_BOTTLENECK
MAX_CONTEXT = <int> _MAX_CONTEXT
BALANCED = <int> _BALANCED
MAX_STEPS = 120_000_000
cdef int64_t LARGEST_SUM = <int64_t> 1 << 62


cdef class Layers:
    """A model's layers, packed."""

    def __cinit__(self, list resident not None, list active not None, list kv not None, list windows not None):
        cdef Py_ssize_t count = len(resident), i
        cdef int64_t weights, read, cache, window
        cdef int64_t *block
        if not 0 < count <= MOST_LAYERS or len(active) != count or len(kv) != count or len(windows) != count:
            raise ValueError(f"a model of {count} layers: 1 to {MOST_LAYERS}, each with four numbers")
        self.cost = block = <int64_t *> malloc((5 * count + 2) * sizeof(int64_t))
        if block == NULL:
            raise MemoryError
        self.model.layers = <int> count
        self.model.memory = block + count + 1
        self.model.resident = block + 2 * count + 2
        self.model.kv = block + 3 * count + 2
        self.model.window = block + 4 * count + 2
        self.smallest = LARGEST_SUM
        block[0] = block[count + 1] = 0
        for i in range(count):
            weights, read, cache, window = resident[i], active[i], kv[i], windows[i]
            if weights < 0 or read < 0 or cache < 0 or window < 0:
                raise ValueError(f"layer {i} has a negative number")
            if (weights > LARGEST_SUM or read > LARGEST_SUM or cache > LARGEST_SUM - read
                    or cache > LARGEST_SUM - weights or block[i] > LARGEST_SUM - read - cache
                    or block[count + 1 + i] > LARGEST_SUM - weights - cache):
                raise ValueError(f"the bytes of the layers up to layer {i} exceed 2**62")
            block[i + 1] = block[i] + read + cache
            block[count + 2 + i] = block[count + 1 + i] + weights + cache
            block[2 * count + 2 + i], block[3 * count + 2 + i], block[4 * count + 2 + i] = weights, cache, window
            if weights + cache < self.smallest:
                self.smallest = weights + cache

    def __dealloc__(self):
        free(self.cost)


cdef int devices_of(list devices, Objective objective, int64_t smallest, Device *into) except -1:
    """Those that can hold a layer, in the order of classes. Returns how many."""
    cdef int count = 0, place, at
    cdef int64_t free_bytes, overhead, total = 0
    cdef double bandwidth
    cdef Device one
    if len(devices) > MOST_DEVICES:
        raise ValueError(f"{len(devices)} devices: at most {MOST_DEVICES}")
    for place in range(len(devices)):
        free_bytes, overhead, bandwidth = devices[place]
        if free_bytes < 0 or overhead < 0 or free_bytes > LARGEST_SUM - total:
            raise ValueError(f"device {place}: bytes are negative, or those of all devices exceed 2**62")
        if not 0 < bandwidth < INFINITY:
            raise ValueError(f"device {place}: a bandwidth of {bandwidth} bytes a second")
        total += free_bytes
        one.free, one.room, one.bandwidth, one.place = free_bytes, free_bytes - overhead, bandwidth, place
        if one.room < (0 if objective == _MAX_CONTEXT else smallest):
            continue
        at = count
        while at > 0 and precedes(&one, &into[at - 1], objective):
            into[at] = into[at - 1]
            at -= 1
        into[at] = one
        count += 1
    return count


cdef bint precedes(const Device *one, const Device *other, Objective objective) noexcept nogil:
    """By what tells devices apart; of equal ones the order stays."""
    if (objective == _MIN_LATENCY or objective == _MIN_BOTTLENECK) and one.bandwidth != other.bandwidth:
        return one.bandwidth > other.bandwidth
    if one.room != other.room:
        return one.room > other.room
    return objective == _BALANCED and one.free < other.free


cdef bint alike(const Device *one, const Device *other, Objective objective) noexcept nogil:
    return not precedes(one, other, objective) and not precedes(other, one, objective)


cdef void classes_of(Problem *p, const Device *devices, int count, Objective objective) noexcept nogil:
    """Merges devices that nothing tells apart; with links they stay apart."""
    cdef int i, klass
    for i in range(count):
        p.member[i] = devices[i].place
        if i == 0 or p.linked or not alike(&devices[i - 1], &devices[i], objective):
            klass = p.classes
            p.classes += 1
            p.size[klass] = 0
            p.member_at[klass] = i
            p.room[klass], p.free[klass] = devices[i].room, devices[i].free
            p.bandwidth[klass] = devices[i].bandwidth
        p.size[p.classes - 1] += 1
    p.slots = p.classes + 1 if p.linked else 1


cdef int hops_of(Problem *p, list links, double default_hop, int devices) except -1:
    """Seconds by what comes before and class; the last link of a pair counts."""
    cdef int i, a, b, klass
    cdef int[MOST_DEVICES] klass_of
    cdef double seconds
    if not 0 <= default_hop < INFINITY:
        raise ValueError(f"a hop of {default_hop} s")
    for a, b, seconds in links:
        if not 0 <= a < devices or not 0 <= b < devices or not 0 <= seconds < INFINITY:
            raise ValueError(f"a link from device {a} to {b} of {seconds} s")
    p.hop = <double *> malloc((p.slots * p.classes + 1) * sizeof(double))
    if p.hop == NULL:
        raise MemoryError
    for i in range(p.slots * p.classes):
        p.hop[i] = default_hop
    for i in range(MOST_DEVICES):
        klass_of[i] = -1
    for klass in range(p.classes):
        klass_of[p.member[klass]] = klass  # where there are links, classes have one member
    for a, b, seconds in links:
        if p.linked and klass_of[a] >= 0 and klass_of[b] >= 0:
            p.hop[(klass_of[a] + 1) * p.classes + klass_of[b]] = seconds
            p.hop[(klass_of[b] + 1) * p.classes + klass_of[a]] = seconds
    return 0


cdef object told(const Problem *p, const Answer *answer):
    """Members of a class are used in the order of the request."""
    cdef int place, klass, first = 0
    cdef int[MOST_DEVICES] taken
    cdef list stages = []
    memset(taken, 0, sizeof(taken))
    for place in range(answer.plan.count):
        klass = answer.plan.klass[place]
        stages.append((p.member[p.member_at[klass] + taken[klass]], first, answer.plan.end[place] - 1))
        taken[klass] += 1
        first = answer.plan.end[place]
    return stages, bool(answer.proved), answer.bound, answer.context, answer.steps


def search(Layers layers not None, list devices not None, list links not None, double default_hop, int objective,
           int64_t most_devices, int64_t context_length, int64_t context_limit, int64_t steps=MAX_STEPS):
    """Stages, whether proved, bound in seconds, context, steps."""
    cdef Problem p
    cdef Answer answer
    cdef Device[MOST_DEVICES] sorted_devices
    cdef Model model = layers.model
    cdef int count, outcome
    if not _MIN_LATENCY <= objective <= _BALANCED:
        raise ValueError(f"no objective {objective}")
    if most_devices < 0 or context_length < 0 or context_limit < 0 or steps < 0:
        raise ValueError("a negative limit")
    if context_length > LARGEST_SUM or context_limit > LARGEST_SUM:
        raise ValueError("a context beyond 2**62 tokens")
    memset(&p, 0, sizeof(p))
    count = devices_of(devices, <Objective> objective, layers.smallest, sorted_devices)
    p.layers, p.cost, p.memory = model.layers, layers.cost, model.memory
    p.linked = len(links) > 0 and (objective == _MIN_LATENCY or objective == _MIN_BOTTLENECK)
    classes_of(&p, sorted_devices, count, <Objective> objective)
    p.most = count if most_devices == 0 or most_devices > count else <int> most_devices
    p.most = p.most if p.most < p.layers else p.layers
    model.asked, model.limit = context_length, context_limit
    hops_of(&p, links, default_hop, <int> len(devices))
    model.memory_then = <int64_t *> malloc((model.layers + 1) * sizeof(int64_t))
    outcome = -1
    if model.memory_then != NULL:
        with nogil:
            outcome = find(&p, &model, <Objective> objective, steps, &answer)
    free(model.memory_then)
    free(p.hop)
    if outcome == CONTRADICTION:
        raise RuntimeError("sums of seconds that are not their own: was this built with reordered arithmetic?")
    if outcome < 0:
        raise MemoryError
    return told(&p, &answer)
