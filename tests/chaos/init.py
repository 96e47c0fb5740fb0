"""The first process of a pid namespace: starts a command, reaps whatever is left to it, ends as the command does.

``python -I -S init.py COMMAND...``; without it an orphan that ended would keep its pid for ever.
"""

import os
import sys


def main(argv: list[str]) -> int:
    child = os.spawnv(os.P_NOWAIT, argv[0], argv)
    while True:
        pid, status = os.wait()
        if pid == child:
            return os.waitstatus_to_exitcode(status)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
