/* The limit that bench.respawn measures against: a supervisor that keeps no record, watches nothing and knows one child.
 *
 * usage: spawn_loop PROGRAM ARGUMENT...
 */
#include <spawn.h>
#include <sys/wait.h>

extern char **environ;

int main(int argc, char **argv)
{
    pid_t child;
    int status;
    if (argc < 2)
        return 2;
    while (posix_spawn(&child, argv[1], 0, 0, argv + 1, environ) == 0)
        if (waitpid(child, &status, 0) != child)
            return 1;
    return 1;
}
