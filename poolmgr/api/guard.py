"""What surrounds every call: a correlation id, and the translation of what goes wrong.

A guard is put around a servicer once, when it is registered, so that a call pays for one function more and no
interceptor chain.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import structlog

from poolmgr.api.status import DETAILS_KEY, status_of
from poolmgr.errors import InternalError, PoolmgrError
from poolmgr.ports import Rng

CORRELATION_KEYS = ("correlation-id", "x-correlation-id")
MAX_CORRELATION_ID = 128

Context = grpc.aio.ServicerContext[Any, Any]
_log = structlog.get_logger("poolmgr.api")


class Guarded:
    """A servicer, each of whose methods is guarded. The generated registration functions take it as they would it."""

    def __init__(self, servicer: object, rng: Rng) -> None:
        self._servicer = servicer
        # Telling calls apart needs no secrecy, and the system's randomness is a system call.
        self._prefix = rng.hex(6)
        self._serials = itertools.count(1)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._servicer, name)
        return self._stream(method) if inspect.isasyncgenfunction(method) else self._unary(method)

    def _unary(self, method: Callable[[Any, Context], Awaitable[object]]) -> Callable[..., Awaitable[object]]:
        async def call(request: object, context: Context) -> object:
            correlation_id = self._correlate(context)
            try:
                return await method(request, context)
            except (PoolmgrError, grpc.aio.AbortError) as error:
                await _refuse(context, error, correlation_id)
            except Exception as error:  # noqa: BLE001 - the outermost loop of a call: a defect must not reach the client
                await _refuse(context, _defect(error, correlation_id), correlation_id)
            return None

        return call

    def _stream(self, method: Callable[[Any, Context], AsyncIterator[object]]) -> Callable[..., AsyncIterator[object]]:
        async def call(request: object, context: Context) -> AsyncIterator[object]:
            correlation_id = self._correlate(context)
            try:
                async for response in method(request, context):
                    yield response
            except (PoolmgrError, grpc.aio.AbortError) as error:
                await _refuse(context, error, correlation_id)
            except Exception as error:  # noqa: BLE001 - the outermost loop of a call: a defect must not reach the client
                await _refuse(context, _defect(error, correlation_id), correlation_id)

        return call

    def _correlate(self, context: Context) -> str:
        """The caller's id, or a new one; told back either way."""
        correlation_id = ""
        for key, value in context.invocation_metadata() or ():
            if key in CORRELATION_KEYS:
                correlation_id = str(value)[:MAX_CORRELATION_ID]
        correlation_id = correlation_id or f"{self._prefix}-{next(self._serials)}"
        context.set_trailing_metadata(((CORRELATION_KEYS[0], correlation_id),))
        return correlation_id


def _defect(error: Exception, correlation_id: str) -> InternalError:
    _log.error("internal_error", correlation_id=correlation_id, exc_info=error)
    return InternalError(str(error))


async def _refuse(context: Context, error: Exception, correlation_id: str) -> None:
    if not isinstance(error, PoolmgrError):
        raise error
    code, message, details = status_of(error, correlation_id)
    if isinstance(error, InternalError):
        _log.error("internal_error", correlation_id=correlation_id, message=error.message)
    await context.abort(code, message, ((DETAILS_KEY, details), (CORRELATION_KEYS[0], correlation_id)))
