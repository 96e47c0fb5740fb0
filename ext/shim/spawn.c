/* Starts a program straight into a cgroup, as posix_spawn would if it could.
 *
 * A fork of the shim copies the page tables of a Python process and takes a page fault for every page that parent and
 * child then touch: 2.4 ms to the program's main. CLONE_VM | CLONE_VFORK shares the memory until execve and suspends
 * the parent meanwhile: 0.9 ms. glibc's posix_spawn does the same, but gained cgroups only with 2.39.
 *
 * Between clone3 and execve the child runs on the parent's stack, so it calls nothing but system calls, and the call
 * that makes it must not return twice through a function's frame: hence the inline instruction.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <linux/sched.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline __attribute__((always_inline)) long clone3_here(struct clone_args *args)
{
#if defined(__x86_64__)
    register long rax __asm__("rax") = SYS_clone3;
    register long rdi __asm__("rdi") = (long)args;
    register long rsi __asm__("rsi") = sizeof *args;
    __asm__ volatile("syscall" : "+r"(rax) : "r"(rdi), "r"(rsi) : "rcx", "r11", "memory");
    return rax;
#elif defined(__aarch64__)
    register long x8 __asm__("x8") = SYS_clone3;
    register long x0 __asm__("x0") = (long)args;
    register long x1 __asm__("x1") = sizeof *args;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1) : "memory");
    return x0;
#else
    (void)args;
    return -ENOSYS; /* the shim forks instead */
#endif
}

/* Signals that the parent handles would run its handlers in the memory they share. */
static inline __attribute__((always_inline)) void default_signals(void)
{
    for (int number = 1; number < 32; number++)
        signal(number, SIG_DFL);
}

/* `cgroup`: a descriptor of the leaf, or -1. Returns the pid, with `*pidfd` open and `*failure` 0, or the errno of a
 * chdir or execve that failed, in which case the child is a zombie; or the negative errno of a clone3 that failed. */
__attribute__((noinline)) long poolmgr_spawn(int cgroup, const char *work, const char *path, char *const argv[],
                                             char *const envp[], int *pidfd, volatile int *failure)
{
    sigset_t all, before;
    struct clone_args args = {
        .flags = CLONE_VM | CLONE_VFORK | CLONE_PIDFD | (cgroup >= 0 ? CLONE_INTO_CGROUP : 0),
        .pidfd = (uintptr_t)pidfd,
        .exit_signal = SIGCHLD,
        .cgroup = cgroup >= 0 ? (uint64_t)cgroup : 0,
    };

    *failure = 0;
    sigfillset(&all);
    sigprocmask(SIG_SETMASK, &all, &before);
    long pid = clone3_here(&args);
    if (pid == 0) {
        default_signals();
        setsid();
        sigprocmask(SIG_SETMASK, &before, NULL);
        if (chdir(work) == 0)
            execve(path, argv, envp);
        *failure = errno;
        _exit(127);
    }
    sigprocmask(SIG_SETMASK, &before, NULL);
    return pid;
}
