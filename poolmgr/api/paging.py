"""Pages of a list that is ordered by a key (AIP-158)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

from poolmgr.errors import ClientError, Reason

T = TypeVar("T")
DEFAULT_PAGE = 100
MAX_PAGE = 1000


def page(items: Sequence[T], key: Callable[[T], str], page_size: int, page_token: str) -> tuple[Sequence[T], str]:
    """(the items whose key comes after `page_token`, the token of the next page or "")."""
    if page_size > MAX_PAGE:
        raise ClientError(
            Reason.INVALID_ARGUMENT,
            f"page_size {page_size} is over the limit of {MAX_PAGE}",
            numbers={"page_size": page_size, "limit": MAX_PAGE},
        )
    rest = [item for item in items if key(item) > page_token] if page_token else items
    size = page_size or DEFAULT_PAGE
    return rest[:size], key(rest[size - 1]) if len(rest) > size else ""
