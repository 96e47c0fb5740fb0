"""Started by path, `python -I -S <this directory> <engine directory>`, with the listening socket as descriptor 3."""

import os
import sys

if not __package__:
    # Run by path there is no package yet (PEP 366). The parent goes to the end: its modules shadow nothing of stdlib.
    sys.path[0:1] = []
    sys.path.append(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    __package__ = "shim"

from .keeper import main

main(sys.argv[1])
