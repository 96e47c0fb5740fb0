"""Kills the daemon at a named point: imported by the interpreter itself, from PYTHONPATH, before anything of poolmgr.

CHAOS_CRASH_POINT is ``module:Class.method:enter:3``: SIGKILL as the third call of the method begins, or with ``leave``
as it ends. Nothing in the product knows of it. A point that is not there ends the process with 97.
"""

from __future__ import annotations

import functools
import importlib.machinery
import importlib.util
import inspect
import os
import signal
import sys

MISSING = 97


class Finder:
    """Arms the point once its module has been executed."""

    def __init__(self, point: str) -> None:
        self.module, self._path, self._moment, count = point.split(":")
        self._left = int(count)

    def find_spec(self, name, path=None, target=None):
        if name != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def execute_and_arm(module) -> None:
            execute(module)
            self._arm(module)

        spec.loader.exec_module = execute_and_arm
        return spec

    def _arm(self, module) -> None:
        *owners, name = self._path.split(".")
        owner = functools.reduce(lambda o, part: getattr(o, part, None), owners, module)
        function = getattr(owner, name, None)
        if function is None:
            os.write(2, f"no crash point {self.module}:{self._path}\n".encode())
            os._exit(MISSING)
        setattr(owner, name, self._killing(function))

    def _killing(self, function):
        if inspect.iscoroutinefunction(function):

            @functools.wraps(function)
            async def wrapped(*args, **named):
                self._hit("enter")
                result = await function(*args, **named)
                self._hit("leave")
                return result

        else:

            @functools.wraps(function)
            def wrapped(*args, **named):
                self._hit("enter")
                result = function(*args, **named)
                self._hit("leave")
                return result

        return wrapped

    def _hit(self, moment: str) -> None:
        if moment == self._moment:
            self._left -= 1
            if self._left == 0:
                os.kill(os.getpid(), signal.SIGKILL)


# Not inherited: what the daemon starts is not to be killed.
_point = os.environ.pop("CHAOS_CRASH_POINT", "")
if _point:
    sys.meta_path.insert(0, Finder(_point))
