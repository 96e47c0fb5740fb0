"""Started by path, `python -I -S <this directory> <directory of poolmgr_ext>`, with its socket as descriptor 3."""

import os
import sys

if not __package__:
    # Run by path there is no package yet (PEP 366). What is added goes to the end: it shadows nothing of stdlib.
    sys.path[0:1] = []
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    sys.path.append(sys.argv[1])
    __package__ = "process"

from .service import main

main()
