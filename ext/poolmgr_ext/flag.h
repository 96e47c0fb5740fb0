/* A word that one thread sets and another one sees, without a lock. */
#ifndef POOLMGR_FLAG_H
#define POOLMGR_FLAG_H

#include <stdatomic.h>

typedef struct {
    _Atomic int value;
} flag_t;

static inline void flag_set(flag_t *flag, int value) { atomic_store_explicit(&flag->value, value, memory_order_release); }
static inline int flag_get(const flag_t *flag) { return atomic_load_explicit(&((flag_t *)flag)->value, memory_order_acquire); }
static inline int flag_take(flag_t *flag) { return atomic_exchange_explicit(&flag->value, 0, memory_order_acq_rel); }

#endif
