# cython: language_level=3, cdivision=True
"""The one table of what is sampled: calls, the fields that each fills, and how often the driver has something new (TEL-2).

Reading faster than the driver renews a value returns the old one and holds the driver's lock.
"""

from libc.math cimport NAN
from libc.string cimport memset

from poolmgr_ext.driver cimport (
    NVML_AGGREGATE_ECC, NVML_CLOCK_GRAPHICS, NVML_CLOCK_MEM, NVML_CLOCK_SM, NVML_CLOCK_VIDEO,
    NVML_ERROR_INSUFFICIENT_SIZE, NVML_ERROR_NOT_SUPPORTED, NVML_FEATURE_ENABLED, NVML_FI_DEV_MEMORY_TEMP,
    NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL, NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL,
    NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL, NVML_FI_DEV_PCIE_COUNT_RX_BYTES, NVML_FI_DEV_PCIE_COUNT_TX_BYTES,
    NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
    NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR, NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS,
    NVML_PCIE_UTIL_RX_BYTES, NVML_PCIE_UTIL_TX_BYTES, NVML_PSTATE_UNKNOWN, NVML_SUCCESS, NVML_TEMPERATURE_GPU,
    NVML_VALUE_NOT_AVAILABLE_UINT, NVML_VALUE_NOT_AVAILABLE_ULL, NVML_VOLATILE_ECC, field_number, nvmlEnableState_t, nvmlFieldValue_t,
    nvmlMemory_t, nvmlUtilization_t, one_field, read_memory)

from collections import namedtuple

from poolmgr_ext.ring import Field
from poolmgr_ext.ringwriter import OFTEN

# `heavy`: it holds the driver for milliseconds, so that a sweep does as many of these as its time allows.
Call = namedtuple("Call", "name fields heavy", defaults=(False,))


def _gauges(unit, cadence, *names):
    return tuple(Field(name, unit, "gauge", cadence) for name in names)


def _counters(unit, cadence, *names, bits=64):
    return tuple(Field(name, unit, "counter", cadence, bits) for name in names)


TABLE = (
    Call("nvmlDeviceGetMemoryInfo_v2", _gauges("bytes", 0.1, "memory_total", "memory_free", "memory_used")),
    Call("nvmlDeviceGetClockInfo(SM)", _gauges("MHz", 0.1, "clock_sm")),
    Call("nvmlDeviceGetClockInfo(MEM)", _gauges("MHz", 0.1, "clock_memory")),
    Call("nvmlDeviceGetClockInfo(GRAPHICS)", _gauges("MHz", 0.1, "clock_graphics")),
    Call("nvmlDeviceGetClockInfo(VIDEO)", _gauges("MHz", 0.1, "clock_video")),
    Call("nvmlDeviceGetTemperature", _gauges("celsius", 0.2, "temperature")),
    Call("nvmlDeviceGetPowerUsage", _gauges("watts", 0.2, "power")),
    Call("nvmlDeviceGetUtilizationRates", _gauges("percent", 0.2, "utilization_gpu", "utilization_memory")),
    Call("nvmlDeviceGetEncoderUtilization", _gauges("percent", 0.2, "utilization_encoder")),
    Call("nvmlDeviceGetDecoderUtilization", _gauges("percent", 0.2, "utilization_decoder")),
    Call("nvmlDeviceGetCurrentClocksEventReasons", _gauges("bits", 0.2, "throttle_reasons")),
    Call("nvmlDeviceGetPerformanceState", _gauges("number", 0.2, "performance_state")),
    Call("nvmlDeviceGetFieldValues(MEMORY_TEMP)", _gauges("celsius", 1.0, "temperature_memory")),
    Call("nvmlDeviceGetEnforcedPowerLimit", _gauges("watts", 1.0, "power_limit")),
    Call("nvmlDeviceGetTotalEnergyConsumption", _counters("joules", 1.0, "energy")),
    Call("nvmlDeviceGetFanSpeed", _gauges("percent", 1.0, "fan")),
    Call("nvmlDeviceGetFieldValues(PCIE_COUNT)", _counters("bytes", 1.0, "pcie_tx_bytes", "pcie_rx_bytes")),
    Call("nvmlDeviceGetPcieReplayCounter", _counters("count", 1.0, "pcie_replays", bits=32)),
    Call("nvmlDeviceGetTotalEccErrors(CORRECTED, VOLATILE)", _counters("count", 1.0, "ecc_corrected_volatile")),
    Call("nvmlDeviceGetTotalEccErrors(UNCORRECTED, VOLATILE)", _counters("count", 1.0, "ecc_uncorrected_volatile")),
    Call("nvmlDeviceGetTotalEccErrors(CORRECTED, AGGREGATE)", _counters("count", 1.0, "ecc_corrected_aggregate")),
    Call("nvmlDeviceGetTotalEccErrors(UNCORRECTED, AGGREGATE)", _counters("count", 1.0, "ecc_uncorrected_aggregate")),
    Call("nvmlDeviceGetRetiredPages(SINGLE)", _counters("count", 5.0, "retired_pages_single")),
    Call("nvmlDeviceGetRetiredPages(DOUBLE)", _counters("count", 5.0, "retired_pages_double")),
    Call("nvmlDeviceGetRetiredPagesPendingStatus", _gauges("boolean", 5.0, "retired_pages_pending")),
    Call("nvmlDeviceGetRemappedRows", (
        *_counters("count", 5.0, "remapped_rows_corrected", "remapped_rows_uncorrected"),
        *_gauges("boolean", 5.0, "remapped_rows_pending", "remapped_rows_failed"),
    )),
    Call("nvmlDeviceGetFieldValues(NVLINK_ERRORS)",
         _counters("count", 1.0, "nvlink_crc_errors", "nvlink_replays", "nvlink_recoveries")),
    Call("nvmlDeviceGetComputeRunningProcesses_v3", _gauges("count", 1.0, "processes"), True),
    Call("nvmlDeviceGetPcieThroughput(TX)", _gauges("bytes/s", 5.0, "pcie_tx"), True),
    Call("nvmlDeviceGetPcieThroughput(RX)", _gauges("bytes/s", 5.0, "pcie_rx"), True),
)
PROCESSES = 27
assert len(TABLE) == CALLS and TABLE[PROCESSES].fields[0].name == "processes"
FIELDS = tuple(field for call in TABLE for field in call.fields)


def chosen(names, cadences):
    """The named fields (None: all), with cadences of which some may be others. KeyError for a name that is none."""
    known = {field.name: field for field in FIELDS}
    wanted = [known[name] for name in (known if names is None else names)]
    return [field._replace(cadence=float((cadences or {}).get(field.name, field.cadence))) for field in wanted]


def plan_of(fields, rate_hz):
    """The calls that fill these fields, the frequent ones first: (slow, call, places of its fields, sweeps, heavy)."""
    places = {field.name: place for place, field in enumerate(fields)}
    plan = []
    for call, described in enumerate(TABLE):
        own = [places.get(field.name, -1) for field in described.fields]
        if max(own) >= 0:
            cadence = min(fields[place].cadence for place in own if place >= 0)
            plan.append((cadence > OFTEN, call, own, max(1, round(cadence * rate_hz)), described.heavy))
    return sorted(plan, key=lambda each: each[:2])


cdef inline double told(unsigned int value) noexcept nogil:
    # The cast matters: C's NAN is a float, and would make the other side one too.
    return NAN if value == NVML_VALUE_NOT_AVAILABLE_UINT else <double> value


cdef inline double told_long(unsigned long long value) noexcept nogil:
    return NAN if value == NVML_VALUE_NOT_AVAILABLE_ULL else <double> value


cdef nvmlReturn_t memory(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef nvmlMemory_t found
    cdef nvmlReturn_t code = read_memory(table, device, &found)
    values[0], values[1], values[2] = told_long(found.total), told_long(found.free), told_long(found.used)
    return code


cdef nvmlReturn_t clock_sm(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int mhz = 0
    cdef nvmlReturn_t code = table.clock(device, NVML_CLOCK_SM, &mhz)
    values[0] = told(mhz)
    return code


cdef nvmlReturn_t clock_memory(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int mhz = 0
    cdef nvmlReturn_t code = table.clock(device, NVML_CLOCK_MEM, &mhz)
    values[0] = told(mhz)
    return code


cdef nvmlReturn_t clock_graphics(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int mhz = 0
    cdef nvmlReturn_t code = table.clock(device, NVML_CLOCK_GRAPHICS, &mhz)
    values[0] = told(mhz)
    return code


cdef nvmlReturn_t clock_video(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int mhz = 0
    cdef nvmlReturn_t code = table.clock(device, NVML_CLOCK_VIDEO, &mhz)
    values[0] = told(mhz)
    return code


cdef nvmlReturn_t temperature(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int celsius = 0
    cdef nvmlReturn_t code = table.temperature(device, NVML_TEMPERATURE_GPU, &celsius)
    values[0] = told(celsius)
    return code


cdef nvmlReturn_t power(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int milliwatts = 0
    cdef nvmlReturn_t code = table.power(device, &milliwatts)
    values[0] = told(milliwatts) * 1e-3
    return code


cdef nvmlReturn_t utilization(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef nvmlUtilization_t found
    cdef nvmlReturn_t code = table.utilization(device, &found)
    values[0], values[1] = told(found.gpu), told(found.memory)
    return code


cdef nvmlReturn_t encoder(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int percent = 0, period = 0
    cdef nvmlReturn_t code = table.encoder(device, &percent, &period)
    values[0] = told(percent)
    return code


cdef nvmlReturn_t decoder(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int percent = 0, period = 0
    cdef nvmlReturn_t code = table.decoder(device, &percent, &period)
    values[0] = told(percent)
    return code


cdef nvmlReturn_t clock_reasons(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned long long reasons = 0
    cdef nvmlReturn_t code = table.clock_reasons(device, &reasons)
    values[0] = told_long(reasons)
    return code


cdef nvmlReturn_t performance_state(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int state = NVML_PSTATE_UNKNOWN
    cdef nvmlReturn_t code = table.performance_state(device, &state)
    values[0] = NAN if state == NVML_PSTATE_UNKNOWN else <double> state
    return code


cdef nvmlReturn_t memory_temperature(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    values[0] = NAN
    cdef nvmlReturn_t code = one_field(table, device, NVML_FI_DEV_MEMORY_TEMP, 0, values)
    if values[0] == 0:  # what cards without the sensor answer
        values[0] = NAN
    return code


cdef nvmlReturn_t power_limit(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int milliwatts = 0
    cdef nvmlReturn_t code = table.power_limit(device, &milliwatts)
    values[0] = NAN if milliwatts == 0 else told(milliwatts) * 1e-3
    return code


cdef nvmlReturn_t energy(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned long long millijoules = 0
    cdef nvmlReturn_t code = table.energy(device, &millijoules)
    values[0] = told_long(millijoules) * 1e-3
    return code


cdef nvmlReturn_t fan(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int percent = 0
    cdef nvmlReturn_t code = table.fan(device, &percent)
    values[0] = told(percent)
    return code


cdef nvmlReturn_t some_fields(const nvml_table *table, nvmlDevice_t device, const unsigned int *ids, int count,
                              double *values) noexcept nogil:
    """Several of nvmlDeviceGetFieldValues in one call; the code is the first field's where all fail."""
    cdef nvmlFieldValue_t[MOST_VALUES] fields
    cdef nvmlReturn_t code
    cdef int i, good = 0
    memset(fields, 0, sizeof(fields))
    for i in range(count):
        fields[i].fieldId = ids[i]
        values[i] = NAN
    code = table.field_values(device, count, fields)
    if code != NVML_SUCCESS:
        return code
    for i in range(count):
        if fields[i].nvmlReturn == NVML_SUCCESS:
            values[i] = field_number(&fields[i])
            good += 1
    return NVML_SUCCESS if good > 0 else fields[0].nvmlReturn


cdef nvmlReturn_t pcie_counts(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int[2] ids
    ids[0], ids[1] = NVML_FI_DEV_PCIE_COUNT_TX_BYTES, NVML_FI_DEV_PCIE_COUNT_RX_BYTES
    return some_fields(table, device, ids, 2, values)


cdef nvmlReturn_t pcie_replays(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int count = 0
    cdef nvmlReturn_t code = table.pcie_replays(device, &count)
    values[0] = told(count)
    return code


cdef inline nvmlReturn_t ecc(const nvml_table *table, nvmlDevice_t device, int kind, int counter,
                             double *values) noexcept nogil:
    cdef unsigned long long count = 0
    cdef nvmlReturn_t code = table.ecc_errors(device, kind, counter, &count)
    values[0] = told_long(count)
    return code


cdef nvmlReturn_t corrected_volatile(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    return ecc(table, device, NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_VOLATILE_ECC, values)


cdef nvmlReturn_t uncorrected_volatile(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    return ecc(table, device, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_VOLATILE_ECC, values)


cdef nvmlReturn_t corrected_aggregate(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    return ecc(table, device, NVML_MEMORY_ERROR_TYPE_CORRECTED, NVML_AGGREGATE_ECC, values)


cdef nvmlReturn_t uncorrected_aggregate(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    return ecc(table, device, NVML_MEMORY_ERROR_TYPE_UNCORRECTED, NVML_AGGREGATE_ECC, values)


cdef inline nvmlReturn_t retired(const nvml_table *table, nvmlDevice_t device, int cause, double *values) noexcept nogil:
    """Only how many: with no room for addresses, the call says that they do not fit, and their number."""
    cdef unsigned int count = 0
    cdef nvmlReturn_t code = table.retired_pages(device, cause, &count, NULL)
    values[0] = count
    return NVML_SUCCESS if code == NVML_ERROR_INSUFFICIENT_SIZE else code


cdef nvmlReturn_t retired_single(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    return retired(table, device, NVML_PAGE_RETIREMENT_CAUSE_MULTIPLE_SINGLE_BIT_ECC_ERRORS, values)


cdef nvmlReturn_t retired_double(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    return retired(table, device, NVML_PAGE_RETIREMENT_CAUSE_DOUBLE_BIT_ECC_ERROR, values)


cdef nvmlReturn_t retired_pending(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef nvmlEnableState_t pending = 0
    cdef nvmlReturn_t code = table.retired_pending(device, &pending)
    values[0] = pending == NVML_FEATURE_ENABLED
    return code


cdef nvmlReturn_t remapped_rows(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int corrected = 0, uncorrected = 0, pending = 0, failed = 0
    cdef nvmlReturn_t code = table.remapped_rows(device, &corrected, &uncorrected, &pending, &failed)
    values[0], values[1], values[2], values[3] = told(corrected), told(uncorrected), pending != 0, failed != 0
    return code


cdef nvmlReturn_t nvlink_errors(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    cdef unsigned int[3] ids
    ids[0] = NVML_FI_DEV_NVLINK_CRC_FLIT_ERROR_COUNT_TOTAL
    ids[1] = NVML_FI_DEV_NVLINK_REPLAY_ERROR_COUNT_TOTAL
    ids[2] = NVML_FI_DEV_NVLINK_RECOVERY_ERROR_COUNT_TOTAL
    return some_fields(table, device, ids, 3, values)


cdef nvmlReturn_t elsewhere(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    """The process list, which the sampler reads itself because it also writes the table."""
    return NVML_ERROR_NOT_SUPPORTED


cdef inline nvmlReturn_t throughput(const nvml_table *table, nvmlDevice_t device, int counter,
                                    double *values) noexcept nogil:
    cdef unsigned int kilobytes = 0
    cdef nvmlReturn_t code = table.pcie_throughput(device, counter, &kilobytes)
    values[0] = told(kilobytes) * 1000
    return code


cdef nvmlReturn_t pcie_tx(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    return throughput(table, device, NVML_PCIE_UTIL_TX_BYTES, values)


cdef nvmlReturn_t pcie_rx(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil:
    return throughput(table, device, NVML_PCIE_UTIL_RX_BYTES, values)


READERS[:] = [
    memory, clock_sm, clock_memory, clock_graphics, clock_video, temperature, power, utilization, encoder, decoder,
    clock_reasons, performance_state, memory_temperature, power_limit, energy, fan, pcie_counts, pcie_replays,
    corrected_volatile, uncorrected_volatile, corrected_aggregate, uncorrected_aggregate, retired_single, retired_double,
    retired_pending, remapped_rows, nvlink_errors, elsewhere, pcie_tx, pcie_rx,
]
