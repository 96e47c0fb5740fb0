"""What the test says that the driver does: a JSON file, looked at again at every call."""

import json
import os
import time


def now() -> dict:
    with open(os.environ["SCRIPT"]) as file:
        return json.load(file)


def wait_while(what: str) -> None:
    while what in now().get("hangs", ()):
        time.sleep(0.005)


def died(what: str) -> None:
    if what in now().get("dies", ()):
        os._exit(7)
    if what in now().get("fails", ()):
        raise AssertionError(f"the {what} is broken")
