"""The Python client: what the command line uses, and what a service that wants a slot of an engine uses.

    with Client() as client, client.lease("chat", holder="search") as lease:
        ask(f"http://{lease.endpoint}/completion")

Answers are the messages of `poolmgr.v1` as they are. Every method raises CallError. A client may be used by several
threads at once; it must not be used across a fork.
"""

from poolmgr.client.client import Client
from poolmgr.client.connection import DEFAULT_ADDRESS
from poolmgr.client.errors import CallError, LeaseRefused
from poolmgr.client.held import HeldLease
from poolmgr.client.session import LeaseSession, acquiring, granted, releasing, renewing

__all__ = [
    "DEFAULT_ADDRESS",
    "CallError",
    "Client",
    "HeldLease",
    "LeaseRefused",
    "LeaseSession",
    "acquiring",
    "granted",
    "releasing",
    "renewing",
]
