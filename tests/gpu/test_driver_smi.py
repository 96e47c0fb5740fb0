"""Our readings beside nvidia-smi's, of the same second (SIM-4). Its tolerances are in smi.py."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from poolmgr_ext.ring import RingReader
from poolmgr_ext.sampler import Sampler

from tests.gpu import smi
from tests.gpu.test_driver_processes import comes

pytestmark = [pytest.mark.behaviour("SIM-4"), pytest.mark.gpu]
AROUND_SECONDS = 1.0  # of readings before and after nvidia-smi: it takes a part of a second to answer


def test_what_there_is_is_what_nvidia_smi_lists(driver, library):
    found = library.discover()
    gpus = [each | {"driver_version": found["driver_version"]} for each in found["devices"] if "index" in each]
    rows = smi.query()
    assert [row["device_id"] for row in rows] == [gpu["device_id"] for gpu in gpus]
    for gpu, row in zip(gpus, rows, strict=True):
        assert list(smi.fact_differences(gpu, row)) == [], gpu["device_id"]


def test_values_are_those_of_nvidia_smi_in_the_same_second(driver, library, tmp_path: Path, remark):
    library.discover()
    sampler = Sampler(library, str(tmp_path / "ring"), 1, depth_seconds=60.0)
    thread = threading.Thread(target=sampler.run)
    thread.start()
    try:
        with RingReader(tmp_path / "ring") as reader:

            def passed(seconds: float) -> int:
                begun = reader.heartbeat()[1]
                return comes(lambda: (at := reader.heartbeat()[1]) > begun + seconds * 1e9 and at)

            begin = passed(AROUND_SECONDS)
            rows = smi.query()
            seconds = (passed(AROUND_SECONDS) - begin) / 1e9 + AROUND_SECONDS
            names = [field.name for field in reader.fields]
            for row in rows:
                values = {
                    name: [value for _, value in reader.history(str(row["device_id"]), name, seconds)] for name in names
                }
                assert list(smi.value_differences(values, row)) == [], row["device_id"]
            remark(f"values beside nvidia-smi's were compared over {seconds:.1f} s")
    finally:
        sampler.stop()
        thread.join()
