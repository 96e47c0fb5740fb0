/* What every party of bench.respawn starts: notes when main() began, tells it, and waits to be killed.
 *
 * usage: child SOCKET NAME      sends "NAME PID CLOCK_MONOTONIC-nanoseconds" to the datagram socket
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now); /* first, so that telling it is not part of what is measured */

    struct sockaddr_un bench = {.sun_family = AF_UNIX};
    char text[128];
    if (argc != 3 || strlen(argv[1]) >= sizeof bench.sun_path)
        return 2;
    strcpy(bench.sun_path, argv[1]);
    int length = snprintf(text, sizeof text, "%.32s %d %lld", argv[2], (int)getpid(),
                          now.tv_sec * 1000000000LL + now.tv_nsec);
    int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (fd < 0 || sendto(fd, text, length, 0, (struct sockaddr *)&bench, sizeof bench) != length)
        return 1;
    for (;;)
        pause();
}
