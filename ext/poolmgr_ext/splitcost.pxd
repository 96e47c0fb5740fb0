# What a split costs, for the native planner's parts: the twin of poolmgr/core/split_costs.py, header only.
#
# Bytes are exact (differences of running sums in int64; the door refuses sums beyond 2**62). Seconds are made by the
# same operations in the same order as there: <double> bytes / bandwidth + hop, and sums from the first stage on.

from libc.stdint cimport int64_t, uint8_t, uint64_t
from libc.string cimport memcpy

cdef extern from *:
    int lowest_bit "__builtin_ctzll"(unsigned long long mask) noexcept nogil

cdef enum:
    MOST_LAYERS = 2048
    MOST_DEVICES = 64
    MOST_STATES = 131072  # multisets of device classes, times the last one with links: 17 different devices
    START = 0  # the slot of what has no stage before it; the only slot where there are no links

# Devices that nothing tells apart are one class; classes are ordered by speed (or by room where speed does not count).
# A state is how many of each class are used, as one number: the sum of stride * number. With links every device is a
# class of its own, and `slots` is classes + 1: what comes before a stage is START or a class, else it is always START.
cdef struct Problem:
    int layers
    int classes
    int slots
    int states  # 0: too many to be listed
    int most  # devices that may be used
    bint linked
    const int64_t *cost  # running sums, layers + 1: bytes read per token
    const int64_t *memory  # bytes held
    int64_t[MOST_DEVICES] room  # for layers
    int64_t[MOST_DEVICES] free
    double[MOST_DEVICES] bandwidth
    int[MOST_DEVICES] size
    int[MOST_DEVICES] stride
    int[MOST_DEVICES] member_at  # in `member`
    int[MOST_DEVICES] member  # places of devices in the request, rising within a class
    double *hop  # [slot before][class], seconds
    uint8_t *used  # [state]: how many devices
    uint64_t *present  # [state]: classes of which it has some
    uint64_t *spare  # [state]: classes of which it does not have all

# Stages in the order of the layers: class, and one past the last layer.
cdef struct Plan:
    int count
    int[MOST_DEVICES] klass
    int[MOST_DEVICES] end


cdef inline double stage_seconds(const Problem *p, int slot, int klass, int first, int end) noexcept nogil:
    return <double> (p.cost[end] - p.cost[first]) / p.bandwidth[klass] + p.hop[slot * p.classes + klass]


cdef inline int slot_of(const Problem *p, int klass) noexcept nogil:
    """What comes before the stage that follows one on `klass`."""
    return klass + 1 if p.linked else START


cdef inline double plan_seconds(const Problem *p, bint slowest, const Plan *plan) noexcept nogil:
    """Its slowest stage, or the sum of its stages."""
    cdef int place, first = 0, slot = START
    cdef double total = 0, one
    for place in range(plan.count):
        one = stage_seconds(p, slot, plan.klass[place], first, plan.end[place])
        total = (one if one > total else total) if slowest else total + one
        first = plan.end[place]
        slot = slot_of(p, plan.klass[place])
    return total


cdef inline double evenness_of(int64_t headroom, int64_t free) noexcept nogil:
    return <double> headroom / <double> free if free > 0 else 0.0


cdef inline int64_t bits_of(double value) noexcept nogil:
    """A number in the same order as values from 0 on are."""
    cdef int64_t bits
    value += 0.0  # no negative zero
    memcpy(&bits, &value, sizeof(bits))
    return bits


cdef inline double of_bits(int64_t bits) noexcept nogil:
    cdef double value
    memcpy(&value, &bits, sizeof(value))
    return value
