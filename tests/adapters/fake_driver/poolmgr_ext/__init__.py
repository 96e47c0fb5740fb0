"""Stands before the real package: a driver in Python that does as a file says, and a sampler that can lie."""

import os

__path__.append(os.environ["REAL_EXTENSION"])
