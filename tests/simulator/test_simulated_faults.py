"""What goes wrong on a simulated host, and what changes while programs use it."""

import os
import signal
import subprocess
import sys
import threading
import time

import pynvml as nv
import pytest

from poolmgr.adapters.simulator import build
from poolmgr.adapters.simulator.host import LiveHost, SimulatedHost, environment, library_path
from poolmgr.adapters.simulator.scenario import load
from poolmgr.adapters.simulator.waves import Wave
from poolmgr.errors import ClientError, EnvironmentFault, Reason


def first():
    return nv.nvmlDeviceGetHandleByIndex(0)


@pytest.mark.behaviour("SIM-1")
@pytest.mark.parametrize(
    ("kind", "code"),
    [("mismatch", nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH), ("no-driver", nv.NVML_ERROR_DRIVER_NOT_LOADED)],
)
def test_a_driver_that_cannot_be_used_says_so_at_init(simulate, library, kind, code):
    host = simulate("L4", init=False)
    host.fault(kind)
    assert library.nvmlInit_v2() == code
    host.fault("driver-works")
    assert library.nvmlInit_v2() == nv.NVML_SUCCESS
    assert library.nvmlShutdown() == nv.NVML_SUCCESS


@pytest.mark.behaviour("SIM-1")
def test_without_a_state_file_there_is_no_driver(simulate, library, monkeypatch, tmp_path):
    simulate("L4", init=False)
    monkeypatch.delenv("POOLMGR_SIM_STATE")
    assert library.nvmlInit_v2() == nv.NVML_ERROR_DRIVER_NOT_LOADED
    monkeypatch.setenv("POOLMGR_SIM_STATE", str(tmp_path / "nothing"))
    assert library.nvmlInit_v2() == nv.NVML_ERROR_DRIVER_NOT_LOADED
    (tmp_path / "other").write_bytes(b"no state")
    monkeypatch.setenv("POOLMGR_SIM_STATE", str(tmp_path / "other"))
    assert library.nvmlInit_v2() == nv.NVML_ERROR_LIB_RM_VERSION_MISMATCH
    assert library.nvmlDeviceGetCount_v2(nv.byref(nv.c_uint())) == nv.NVML_ERROR_UNINITIALIZED


@pytest.mark.behaviour("SIM-1")
def test_a_driver_without_devices_works_and_counts_none(simulate):
    host = simulate("2xL4")
    host.fault("no-devices")
    assert nv.nvmlDeviceGetCount() == 0
    host.fault("devices-back")
    assert nv.nvmlDeviceGetCount() == 2


@pytest.mark.behaviour("SIM-2")
def test_a_lost_device_answers_lost_and_tells_xid_79(simulate):
    host = simulate("2xA100")
    handle, events = first(), nv.nvmlEventSetCreate()
    nv.nvmlDeviceRegisterEvents(handle, nv.nvmlEventTypeXidCriticalError, events)
    host.fault("lost", 0)
    with pytest.raises(nv.NVMLError_GpuIsLost):
        nv.nvmlDeviceGetTemperature(handle, 0)
    with pytest.raises(nv.NVMLError_GpuIsLost):
        first()
    assert nv.nvmlDeviceGetCount() == 2
    assert nv.nvmlEventSetWait_v2(events, 0).eventData == 79
    host.fault("found", 0)
    assert nv.nvmlDeviceGetTemperature(handle, 0) == 34
    nv.nvmlEventSetFree(events)


@pytest.mark.behaviour("SIM-2")
def test_a_removed_device_is_counted_no_more_and_comes_back_as_the_same(simulate):
    host = simulate("2xA100")
    gone, other = host.uuids()
    host.fault("removed", 0)
    assert nv.nvmlDeviceGetCount() == 1
    assert nv.nvmlDeviceGetUUID(first()) == other
    host.fault("found", 0)
    assert nv.nvmlDeviceGetUUID(first()) == gone


@pytest.mark.behaviour("SIM-2")
def test_a_hang_blocks_the_call_and_all_others_until_it_is_lifted(simulate):
    host = simulate("2xL4")
    handles = [nv.nvmlDeviceGetHandleByIndex(i) for i in range(2)]
    host.fault("hang", 0, seconds=3600)
    answers = []
    threads = [
        threading.Thread(target=lambda h=h: answers.append(nv.nvmlDeviceGetTemperature(h, 0)), daemon=True)
        for h in handles
    ]
    threads[0].start()
    until = time.monotonic() + 10
    while host.calls().get("nvmlDeviceGetTemperature", 0) < 1 and time.monotonic() < until:
        os.sched_yield()
    threads[1].start()
    threads[1].join(0.05)
    assert answers == [] and threads[0].is_alive() and threads[1].is_alive()
    host.fault("clear", 0)
    for thread in threads:
        thread.join(10)
    assert answers == [34, 34]


@pytest.mark.behaviour("SIM-2")
def test_a_program_that_hangs_in_the_driver_can_be_killed(simulate):
    host = simulate("L4", init=False)
    host.fault("hang", seconds=3600)
    child = subprocess.Popen([sys.executable, "-c", "import pynvml; pynvml.nvmlInit()"],
                             env=os.environ | environment(host.path))  # fmt: skip
    until = time.monotonic() + 20
    while not host.calls() and time.monotonic() < until:
        os.sched_yield()
    assert child.poll() is None
    child.kill()
    assert child.wait(10) == -9


@pytest.mark.behaviour("SIM-2")
def test_calls_cost_what_they_are_set_to_in_processor_time(simulate):
    host = simulate("L4")
    handle = first()
    host.call_cost(50_000, "nvmlDeviceGetPowerUsage")
    began, spent = time.monotonic(), time.process_time()
    nv.nvmlDeviceGetPowerUsage(handle)
    assert time.monotonic() - began >= 0.05
    assert time.process_time() - spent >= 0.01, "it is busy, it does not sleep"
    assert host.calls()["nvmlDeviceGetPowerUsage"] == 1


@pytest.mark.behaviour("SIM-2")
def test_one_card_alone_may_not_support_a_call_or_a_field(simulate):
    simulate(
        "[[gpu]]\nmodel = 'A100'\nunsupported = ['nvmlDeviceGetPowerUsage', 'MEMORY_TEMP']\n[[gpu]]\nmodel = 'A100'\n"
    )
    bad, good = (nv.nvmlDeviceGetHandleByIndex(i) for i in range(2))
    with pytest.raises(nv.NVMLError_NotSupported):
        nv.nvmlDeviceGetPowerUsage(bad)
    assert nv.nvmlDeviceGetPowerUsage(good) == 60_000
    codes = [nv.nvmlDeviceGetFieldValues(h, [nv.NVML_FI_DEV_MEMORY_TEMP])[0].nvmlReturn for h in (bad, good)]
    assert codes == [nv.NVML_ERROR_NOT_SUPPORTED, nv.NVML_SUCCESS]


@pytest.mark.behaviour("SIM-2")
def test_a_call_can_be_made_to_fail_with_any_code(simulate):
    host = simulate("A100")
    host.fault("error", 0, function="nvmlDeviceGetTemperature", code="TIMEOUT")
    with pytest.raises(nv.NVMLError_Timeout):
        nv.nvmlDeviceGetTemperature(first(), 0)
    host.fault("error", 0, code="UNKNOWN")
    with pytest.raises(nv.NVMLError_Unknown):
        nv.nvmlDeviceGetName(first())
    host.fault("clear", 0)
    assert nv.nvmlDeviceGetTemperature(first(), 0) == 34


@pytest.mark.behaviour("SIM-2")
def test_ecc_errors_count_and_tell(simulate):
    host = simulate("A100")
    handle, events = first(), nv.nvmlEventSetCreate()
    nv.nvmlDeviceRegisterEvents(handle, nv.nvmlEventTypeDoubleBitEccError | nv.nvmlEventTypeXidCriticalError, events)
    host.fault("ecc", 0, count=4)
    host.fault("ecc", 0, uncorrected=True, count=1)
    assert [nv.nvmlDeviceGetTotalEccErrors(handle, kind, 0) for kind in (0, 1)] == [4, 1]
    assert nv.nvmlDeviceGetMemoryErrorCounter(handle, 0, 1, nv.NVML_MEMORY_LOCATION_DEVICE_MEMORY) == 4
    told = [nv.nvmlEventSetWait_v2(events, 0) for _ in range(2)]
    assert [(e.eventType, e.eventData) for e in told] == [(2, 1), (8, 48)]
    with pytest.raises(nv.NVMLError_Timeout):
        nv.nvmlEventSetWait_v2(events, 0)
    nv.nvmlEventSetFree(events)


@pytest.mark.behaviour("SIM-2")
def test_a_wait_ends_with_an_xid_that_comes_meanwhile_from_another_control(simulate):
    host = simulate("2xA100")
    events, told = nv.nvmlEventSetCreate(), []
    for i in range(2):
        nv.nvmlDeviceRegisterEvents(nv.nvmlDeviceGetHandleByIndex(i), nv.nvmlEventTypeXidCriticalError, events)
    waiter = threading.Thread(target=lambda: told.append(nv.nvmlEventSetWait_v2(events, 60_000)), daemon=True)
    waiter.start()
    LiveHost(host.path).xid(1, 94)
    waiter.join(10)
    assert told[0].eventData == 94
    assert nv.nvmlDeviceGetIndex(told[0].device) == 1
    nv.nvmlEventSetFree(events)


@pytest.mark.behaviour("SIM-2")
def test_a_planned_fault_happens_at_its_time_without_anybody_who_controls_it(simulate):
    simulate(
        "[[gpu]]\nmodel = 'A100'\n[[fault]]\nkind = 'xid'\ncode = 63\nat = 0.2\ngpu = 0\naction = 'drain-and-reset'\n"
    )
    handle, events = first(), nv.nvmlEventSetCreate()
    nv.nvmlDeviceRegisterEvents(handle, nv.nvmlEventTypeXidCriticalError, events)
    began = time.monotonic()
    assert nv.nvmlEventSetWait_v2(events, 60_000).eventData == 63
    assert time.monotonic() - began < 10
    value = nv.nvmlDeviceGetFieldValues(handle, [nv.NVML_FI_DEV_GET_GPU_RECOVERY_ACTION])[0]
    assert value.value.uiVal == nv.NVML_GPU_RECOVERY_ACTION_DRAIN_AND_RESET
    nv.nvmlEventSetFree(events)


@pytest.mark.behaviour("SIM-1")
def test_events_that_a_device_cannot_tell_are_refused(simulate):
    simulate("RTX3090")
    events = nv.nvmlEventSetCreate()
    with pytest.raises(nv.NVMLError_NotSupported):
        nv.nvmlDeviceRegisterEvents(first(), nv.nvmlEventTypeDoubleBitEccError, events)
    assert not nv.nvmlDeviceGetSupportedEventTypes(first()) & nv.nvmlEventTypeDoubleBitEccError
    nv.nvmlEventSetFree(events)


@pytest.mark.behaviour("SIM-2")
def test_instances_come_and_go_while_programs_run_each_with_a_uuid_of_its_own(simulate):
    host = simulate("A100-40GB[3g.20gb]")
    gpu, events = first(), nv.nvmlEventSetCreate()
    nv.nvmlDeviceRegisterEvents(gpu, nv.nvmlEventMigConfigChange, events)
    mig = nv.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 0)
    made = host.mig_create(0, "2g.10gb")
    assert nv.nvmlEventSetWait_v2(events, 0).gpuInstanceId == 3
    assert nv.nvmlDeviceGetUUID(nv.nvmlDeviceGetMigDeviceHandleByIndex(gpu, 1)) == made
    host.mig_destroy(0, 1)
    again = host.mig_create(0, "2g.10gb")
    assert again != made
    host.mig_destroy(0, 0)
    with pytest.raises(nv.NVMLError_NotFound):
        nv.nvmlDeviceGetMemoryInfo(mig)
    nv.nvmlEventSetFree(events)


@pytest.mark.behaviour("SIM-2")
def test_only_instances_that_fit_the_slices_can_be_made(simulate):
    host = simulate("A100-40GB[3g.20gb,3g.20gb]")
    assert nv.nvmlDeviceGetGpuInstanceRemainingCapacity(first(), 19) == 0
    with pytest.raises(ClientError) as refused:
        host.mig_create(0, "1g.5gb")
    assert refused.value.reason == Reason.INVALID_SCENARIO and "no room" in refused.value.message
    host.mig_destroy(0, 1)
    assert nv.nvmlDeviceGetGpuInstanceRemainingCapacity(first(), 19) == 3
    host.fault("mig-mode", 0, on=False)
    assert nv.nvmlDeviceGetMaxMigDeviceCount(first()) == 0
    with pytest.raises(ClientError, match="MIG is off"):
        host.mig_create(0, "1g.5gb")


@pytest.mark.behaviour("SIM-2")
def test_memory_of_a_process_that_is_gone_is_free_again(simulate):
    host = simulate("L4")
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        host.process_take(0, child.pid, 5 << 30)
        assert [p.pid for p in nv.nvmlDeviceGetComputeRunningProcesses(first())] == [child.pid]
        before = nv.nvmlDeviceGetMemoryInfo(first()).used
        child.kill()
        child.wait()
        until = time.monotonic() + 10
        while nv.nvmlDeviceGetComputeRunningProcesses(first()) and time.monotonic() < until:
            os.sched_yield()
    assert before - nv.nvmlDeviceGetMemoryInfo(first()).used == 5 << 30


@pytest.mark.behaviour("SIM-2")
def test_memory_may_stay_taken_for_a_while_after_its_process_has_gone(simulate):
    host = simulate("[[gpu]]\nmodel = 'L4'\nrelease_seconds = 3600\n")
    host.process_take(0, os.getpid(), 1 << 30)
    before = nv.nvmlDeviceGetMemoryInfo(first()).used
    host.process_release(0, os.getpid())
    assert nv.nvmlDeviceGetComputeRunningProcesses(first()) == []
    assert nv.nvmlDeviceGetMemoryInfo(first()).used == before


@pytest.mark.behaviour("SIM-1")
def test_a_program_takes_and_releases_memory_by_itself(simulate, library):
    host = simulate("L4")
    uuid = host.uuid(0).encode()
    total = 23034 << 20
    assert library.poolmgr_sim_take(uuid, os.getpid(), nv.c_ulonglong(2 << 30)) == 0
    assert library.poolmgr_sim_take(uuid, os.getpid(), nv.c_ulonglong(3 << 30)) == 0, "in place of what it held"
    assert [p.usedGpuMemory for p in nv.nvmlDeviceGetComputeRunningProcesses(first())] == [3 << 30]
    assert library.poolmgr_sim_take(uuid, os.getpid(), nv.c_ulonglong(total)) == -12  # ENOMEM
    assert library.poolmgr_sim_take(b"GPU-other", os.getpid(), nv.c_ulonglong(1)) == -19  # ENODEV
    assert library.poolmgr_sim_release(uuid, os.getpid()) == 0
    assert library.poolmgr_sim_release(uuid, os.getpid()) == -3  # ESRCH
    assert nv.nvmlDeviceGetComputeRunningProcesses(first()) == []


@pytest.mark.behaviour("SIM-2")
def test_memory_that_the_driver_does_not_tell_is_none(simulate):
    simulate("[[gpu]]\nmodel = 'L4'\n[[process]]\ngpu = 0\nmemory = '1GiB'\nhidden = true\n")
    assert [p.usedGpuMemory for p in nv.nvmlDeviceGetComputeRunningProcesses(first())] == [None]


@pytest.mark.behaviour("SIM-2")
def test_processes_of_a_scenario_come_and_go_at_their_times_and_grow(simulate):
    process = "[[process]]\ngpu = 0\nmemory = '1GiB'\n"
    gpu = "[[gpu]]\nmodel = 'L4'\n"
    simulate(f"{gpu}{process}{process}at = 3600\n{process}until = 0\n")
    assert [p.usedGpuMemory for p in nv.nvmlDeviceGetComputeRunningProcesses(first())] == [1 << 30]
    simulate(f"{gpu}{process}grows_per_second = 1000000000000000\nup_to = '3GiB'\n")
    assert [p.usedGpuMemory for p in nv.nvmlDeviceGetComputeRunningProcesses(first())] == [3 << 30]
    used = nv.nvmlDeviceGetMemoryInfo(first(), nv.nvmlMemory_v2)
    assert used.used == 3 << 30


@pytest.mark.behaviour("SIM-1")
def test_sixty_four_devices_are_all_there_and_each_is_another(simulate):
    host = simulate("64xL4")
    uuids = {nv.nvmlDeviceGetUUID(nv.nvmlDeviceGetHandleByIndex(i)) for i in range(nv.nvmlDeviceGetCount())}
    assert len(uuids) == 64 and uuids == set(host.uuids())


@pytest.mark.behaviour("SIM-2")
def test_many_threads_read_while_values_change_and_see_only_whole_ones(simulate):
    host = simulate("H100")
    handle, seen, stop = first(), set(), threading.Event()

    def read():
        while not stop.is_set():
            seen.add(nv.nvmlDeviceGetPowerUsage(handle))

    # Half of one waveform and half of the other would show 900 or 0 watts.
    shapes = (Wave(a=100), Wave("step", 900, 600, period=1e-3))
    build.write_wave(host.state, 0, "power", shapes[0], from_ns=0)
    threads = [threading.Thread(target=read, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    for i in range(4000):
        build.write_wave(host.state, 0, "power", shapes[i % 2], from_ns=0)
    stop.set()
    for thread in threads:
        thread.join(10)
    assert seen <= {100_000, 600_000} and seen


HOLDER = """
import ctypes, os, sys
library = ctypes.CDLL(sys.argv[1])
print("runs", flush=True)
while True:
    library.poolmgr_sim_take(sys.argv[2].encode(), os.getpid(), ctypes.c_ulonglong(1 << 20))
    library.poolmgr_sim_release(sys.argv[2].encode(), os.getpid())
"""


@pytest.mark.behaviour("SIM-1")
def test_programs_that_are_killed_while_they_change_the_state_leave_it_usable(simulate):
    host = simulate("L4")
    for _ in range(6):
        command = [sys.executable, "-S", "-c", HOLDER, str(library_path()), host.uuid(0)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            child.stdout.readline()
            for _ in range(300):
                host.state.processes(0)
            child.kill()
        began = time.monotonic()
        assert nv.nvmlDeviceGetMemoryInfo(first(), nv.nvmlMemory_v2).used == 0
        assert time.monotonic() - began < 5


@pytest.mark.behaviour("SIM-1")
def test_a_program_that_is_stopped_does_not_stop_others(simulate):
    host = simulate("L4")
    command = [sys.executable, "-S", "-c", HOLDER, str(library_path()), host.uuid(0)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        child.stdout.readline()
        for _ in range(20):
            child.send_signal(signal.SIGSTOP)
            began = time.monotonic()
            nv.nvmlDeviceGetMemoryInfo(first())
            assert time.monotonic() - began < 5
            child.send_signal(signal.SIGCONT)
        child.kill()


def test_control_over_something_else_than_a_state_file_is_an_error(tmp_path):
    (tmp_path / "text").write_text("no state")
    for path in (tmp_path / "text", tmp_path / "nothing"):
        with pytest.raises(EnvironmentFault) as fault:
            LiveHost(path)
        assert fault.value.reason == Reason.HOST_FAULT
    with pytest.raises(EnvironmentFault):
        SimulatedHost(load("L4"), tmp_path / "no" / "folder")


def test_names_that_are_not_there_are_told_with_those_that_are(simulate):
    host = simulate("2xL4", init=False)
    with pytest.raises(ClientError, match="cannot be set; there are temperature"):
        host.set(0, "temprature", 3)
    with pytest.raises(ClientError, match="there are 0 to 1") as fault:
        host.set(2, "power", 3)
    assert fault.value.reason == Reason.DEVICE_NOT_FOUND
    with pytest.raises(ClientError, match="outside of 0 to 100"):
        host.set(0, "utilization", 101)
    with pytest.raises(ClientError, match="there are xid"):
        host.fault("xdi", 0, code=3)
    with pytest.raises(ClientError, match="code: is missing"):
        host.fault("xid", 0)
    assert host.index(host.uuid(1)[:12]) == 1
