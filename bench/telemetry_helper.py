"""A process that does no more than read the driver: what the native reader costs in memory. usage: LIBRARY RING

Run as `python -I -S`, as the telemetry process is; prints a line when it has begun and ends with its standard input.
"""

import sys
import threading

sys.path.insert(0, sys.argv[3])

from poolmgr_ext.nvml import Library
from poolmgr_ext.sampler import Sampler

library = Library(sys.argv[1])
library.discover()
sampler = Sampler(library, sys.argv[2], 1)
thread = threading.Thread(target=sampler.run)
thread.start()
print("begun", flush=True)
sys.stdin.read()
sampler.stop()
thread.join()
