/* The tables of state.h by name, for poolmgr_ext.simstate. */
#include <stddef.h>
#include <string.h>

#include "state.h"

#define NAME(name) #name,
#define FUNCTION_NAME(name, flags) #name,
#define DEVICE_OFFSET(name) offsetof(SimDevice, name),
#define SYSTEM_OFFSET(name) offsetof(SimState, name),
#define COUNT(table) ((int)(sizeof(table) / sizeof(table[0])))

#define SIM_FUNCTION FUNCTION_NAME
static const char *const FUNCTIONS[] = {
#include "functions.def"
};
#undef SIM_FUNCTION

static const char *const SERIES[] = {SIM_SERIES(NAME)};
static const char *const DEVICE_NUMBERS[] = {SIM_DEVICE_NUMBERS(NAME)};
static const size_t DEVICE_NUMBER_AT[] = {SIM_DEVICE_NUMBERS(DEVICE_OFFSET)};
static const char *const DEVICE_TEXTS[] = {SIM_DEVICE_TEXTS(NAME)};
static const size_t DEVICE_TEXT_AT[] = {SIM_DEVICE_TEXTS(DEVICE_OFFSET)};
static const char *const SYSTEM_NUMBERS[] = {SIM_SYSTEM_NUMBERS(NAME)};
static const size_t SYSTEM_NUMBER_AT[] = {SIM_SYSTEM_NUMBERS(SYSTEM_OFFSET)};
static const char *const SYSTEM_TEXTS[] = {SIM_SYSTEM_TEXTS(NAME)};
static const size_t SYSTEM_TEXT_AT[] = {SIM_SYSTEM_TEXTS(SYSTEM_OFFSET)};

_Static_assert(COUNT(FUNCTIONS) <= SIM_MAX_FUNCTIONS, "more functions than the state has counters for");

static int find(const char *const *table, int count, const char *name) {
    for (int i = 0; i < count; i++)
        if (strcmp(table[i], name) == 0) return i;
    return -1;
}

#define PICK(table, index) ((index) >= 0 && (index) < COUNT(table) ? (table)[index] : NULL)
#define PLACE(type, base, offsets, index) \
    ((index) >= 0 && (index) < COUNT(offsets) ? (type *)((char *)(base) + (offsets)[index]) : NULL)

int sim_function_index(const char *name) { return find(FUNCTIONS, COUNT(FUNCTIONS), name); }
const char *sim_function_name(int index) { return PICK(FUNCTIONS, index); }
int sim_series_index(const char *name) { return find(SERIES, COUNT(SERIES), name); }
const char *sim_series_name(int index) { return PICK(SERIES, index); }
int64_t *sim_device_number(SimDevice *device, int index) { return PLACE(int64_t, device, DEVICE_NUMBER_AT, index); }
const char *sim_device_number_name(int index) { return PICK(DEVICE_NUMBERS, index); }
char *sim_device_text(SimDevice *device, int index) { return PLACE(char, device, DEVICE_TEXT_AT, index); }
const char *sim_device_text_name(int index) { return PICK(DEVICE_TEXTS, index); }
int64_t *sim_system_number(SimState *state, int index) { return PLACE(int64_t, state, SYSTEM_NUMBER_AT, index); }
const char *sim_system_number_name(int index) { return PICK(SYSTEM_NUMBERS, index); }
char *sim_system_text(SimState *state, int index) { return PLACE(char, state, SYSTEM_TEXT_AT, index); }
const char *sim_system_text_name(int index) { return PICK(SYSTEM_TEXTS, index); }
