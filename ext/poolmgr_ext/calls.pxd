# The complete header of calls: what the sampler asks of a device. Each reader is one call of the driver and fills one
# value per field, NaN for what it does not tell.

from poolmgr_ext.driver cimport nvml_table, nvmlDevice_t, nvmlReturn_t

cdef enum:
    MOST_VALUES = 4  # of one call
    CALLS = 30

ctypedef nvmlReturn_t (*Reader)(const nvml_table *table, nvmlDevice_t device, double *values) noexcept nogil

cdef Reader[CALLS] READERS
