# cython: language_level=3, cdivision=True
"""Calls of the driver's library that need more than one line. All run without the GIL."""

from libc.stdlib cimport free, malloc
from libc.string cimport memset


cdef nvmlReturn_t read_memory(const nvml_table *table, nvmlDevice_t device, nvmlMemory_t *found) noexcept nogil:
    """By the second version, whose `used` is without what the driver keeps for itself, as nvidia-smi has it."""
    cdef nvmlMemory_v2_t second
    cdef nvmlReturn_t code
    second.version = nvmlMemory_v2
    code = table.memory(device, &second)
    if code == NVML_SUCCESS:
        found.total, found.free, found.used = second.total, second.free, second.used
    elif code == NVML_ERROR_FUNCTION_NOT_FOUND or code == NVML_ERROR_ARGUMENT_VERSION_MISMATCH:
        code = table.memory_v1(device, found)
    if code == NVML_SUCCESS and (found.total == 0 or found.total == NVML_VALUE_NOT_AVAILABLE_ULL):
        return NVML_ERROR_NOT_SUPPORTED
    return code


cdef double field_number(const nvmlFieldValue_t *field) noexcept nogil:
    if field.valueType == NVML_VALUE_TYPE_DOUBLE:
        return field.value.dVal
    if field.valueType == NVML_VALUE_TYPE_UNSIGNED_INT:
        return field.value.uiVal
    if field.valueType == NVML_VALUE_TYPE_UNSIGNED_LONG:
        return <double> field.value.ulVal
    if field.valueType == NVML_VALUE_TYPE_UNSIGNED_LONG_LONG:
        return <double> field.value.ullVal
    if field.valueType == NVML_VALUE_TYPE_SIGNED_LONG_LONG:
        return <double> field.value.sllVal
    if field.valueType == NVML_VALUE_TYPE_SIGNED_INT:
        return field.value.siVal
    return field.value.usVal


cdef nvmlReturn_t one_field(const nvml_table *table, nvmlDevice_t device, unsigned int which, unsigned int scope,
                            double *found) noexcept nogil:
    """One of nvmlDeviceGetFieldValues. The call succeeds where the field fails: its own code counts."""
    cdef nvmlFieldValue_t field
    cdef nvmlReturn_t code
    memset(&field, 0, sizeof(field))
    field.fieldId = which
    field.scopeId = scope
    code = table.field_values(device, 1, &field)
    if code != NVML_SUCCESS:
        return code
    if field.nvmlReturn == NVML_SUCCESS:
        found[0] = field_number(&field)
    return field.nvmlReturn


cdef nvmlReturn_t list_processes(process_call call, nvmlDevice_t device, nvmlProcessInfo_t **infos,
                                 unsigned int *count) noexcept nogil:
    """The caller frees `infos`, also after an error; `count` is 0 then."""
    cdef unsigned int room = PROCESS_ROOM
    cdef nvmlReturn_t code = NVML_ERROR_INSUFFICIENT_SIZE
    cdef int _
    for _ in range(ATTEMPTS):
        free(infos[0])
        infos[0] = <nvmlProcessInfo_t *> malloc(room * sizeof(nvmlProcessInfo_t))
        count[0] = room
        if infos[0] == NULL:
            count[0] = 0
            return NVML_ERROR_UNKNOWN
        code = call(device, count, infos[0])
        if code != NVML_ERROR_INSUFFICIENT_SIZE:
            break
        room = 2 * count[0] if count[0] > room else 2 * room
        room = MOST_PROCESSES if room > MOST_PROCESSES else room
    if code != NVML_SUCCESS or count[0] > room:
        count[0] = 0
    return code
