"""Values over time: functions of the boot-time clock, renewed as often as the driver renews them (SIM-2)."""

import pytest
from poolmgr_ext import simstate

from poolmgr.adapters.simulator import build
from poolmgr.adapters.simulator.waves import SERIES, Wave

SECOND = 1_000_000_000


@pytest.fixture
def wave(simulate):
    """wave(Wave) -> value(seconds after its start), of the clock, which is renewed all the time."""
    host = simulate("H100", init=False)
    start = simstate.now() // SECOND * SECOND

    def put(shape, series="clock_sm"):
        build.write_wave(host.state, 0, series, shape, from_ns=start)
        return lambda seconds: host.state.series(0, series, start + round(seconds * SECOND))

    return put


@pytest.mark.behaviour("SIM-2")
def test_a_ramp_rises_and_then_stays(wave):
    value = wave(Wave("ramp", 100, 200, period=10))
    assert [value(t) for t in (0, 5, 10, 99)] == [100, 150, 200, 200]


@pytest.mark.behaviour("SIM-2")
def test_a_step_happens_once_or_over_and_over(wave):
    once, over = Wave("step", 1, 9, period=2), Wave("step", 1, 9, period=2, repeat=True)
    value = wave(once)
    assert [value(t) for t in (0, 1.9, 2.1, 50)] == [1, 1, 9, 9]
    value = wave(over)
    assert [value(t) for t in (0, 2.1, 4.1, 6.1)] == [1, 9, 1, 9]


@pytest.mark.behaviour("SIM-2")
def test_noise_is_the_same_every_time_that_the_same_moment_is_asked_and_stays_in_its_bounds(wave):
    value = wave(Wave("noise", 1000, 50))
    seen = [value(t / 100) for t in range(1000)]
    assert seen == [value(t / 100) for t in range(1000)]
    assert len(set(seen)) > 900
    assert all(950 <= v <= 1050 for v in seen)
    assert abs(sum(seen) / len(seen) - 1000) < 5


@pytest.mark.behaviour("SIM-2")
def test_two_devices_are_noisy_apart(simulate):
    host = simulate("2xH100", init=False)
    for device in range(2):
        build.write_wave(host.state, device, "clock_sm", Wave("noise", 1000, 50), from_ns=0)
    assert host.state.series(0, "clock_sm", SECOND) != host.state.series(1, "clock_sm", SECOND)


@pytest.mark.behaviour("SIM-2")
def test_a_trace_is_replayed_over_and_over_and_each_value_holds_until_the_next(wave):
    value = wave(Wave("replay", points=((0, 5), (1, 7), (4, 2), (5, 2)), period=5))
    assert [value(t) for t in (0.5, 1.5, 3.9, 4.5, 5.5, 6.5)] == [5, 7, 7, 2, 5, 7]


@pytest.mark.behaviour("SIM-2")
def test_values_are_held_in_the_range_that_a_driver_tells(wave):
    assert wave(Wave("ramp", 90, 500, period=1), "utilization")(10) == 100


@pytest.mark.behaviour("SIM-2")
def test_utilisation_is_renewed_six_times_a_second_and_not_in_between(simulate):
    host = simulate("H100", init=False)
    update = round(SERIES["utilization"][2] * SECOND)
    build.write_wave(host.state, 0, "utilization", Wave("ramp", 0, 100, period=1000), from_ns=0)
    begin = 10**6 * update
    held = {host.state.series(0, "utilization", begin + i * update // 100) for i in range(100)}
    build.write_wave(host.state, 0, "utilization", Wave("noise", 50, 40), from_ns=0)
    seen = [host.state.series(0, "utilization", i * SECOND // 100) for i in range(200)]
    assert len(held) == 1
    assert 11 <= len(set(seen)) <= 13


@pytest.mark.behaviour("SIM-2")
@pytest.mark.parametrize(
    ("shape", "joules"),
    [
        (Wave(a=100), 1000),
        (Wave("ramp", 100, 300, period=5), 2000 / 2 + 1500),
        (Wave("step", 100, 300, period=2), 200 + 2400),
        (Wave("step", 100, 300, period=2, repeat=True), 200 + 600 + 200 + 600 + 200),
        (Wave("sine", 100, 50, period=5), 1000),
        (Wave("replay", points=((0, 100), (1, 300), (4, 0), (5, 0)), period=5), 2000),
        (Wave("noise", 100, 30), 1000),
        (Wave("absent"), 0),
    ],
)
def test_energy_is_the_integral_of_power_in_closed_form(simulate, shape, joules):
    host = simulate("H100", init=False)
    build.write_wave(host.state, 0, "power", Wave("absent"))
    start = simstate.now()
    build.write_wave(host.state, 0, "power", shape, from_ns=start)
    slack = (simstate.now() - start) / SECOND * 400  # what it used between the two lines
    assert host.state.total(0, "power", start + 10 * SECOND) == pytest.approx(
        joules + host.state.total(0, "power", start), abs=slack + 0.5
    )


@pytest.mark.behaviour("SIM-2")
def test_a_counter_does_not_fall_when_the_waveform_behind_it_is_changed(simulate):
    host = simulate("H100", init=False)
    later = simstate.now() + 5 * SECOND
    totals = []
    for watts in (700, 10, 0, 300):
        host.set(0, "power", watts)
        totals.append(host.state.total(0, "power"))
    assert totals == sorted(totals) and host.state.total(0, "power", later) > totals[-1]
