"""Images per second, and the time spent waiting for data."""

import math

from deepres.throughput import Throughput


def test_the_speed_is_that_since_it_was_last_asked_for(monkeypatch):
    throughput, clock = Throughput(), iter([0.0, 1.0, 3.0, 7.0])
    monkeypatch.setattr("deepres.throughput.time.perf_counter", lambda: next(clock))
    speeds = []
    for _ in range(4):
        throughput.count(8, 0.0)
        speeds.append(throughput.since_last_asked())
    assert math.isnan(speeds[0])
    assert speeds[1:] == [8, 4, 2]
    assert throughput.per_s == 24 / 7


def test_data_that_the_first_step_of_a_stretch_waits_for_is_no_part_of_its_time(monkeypatch):
    throughput, clock = Throughput(), iter([0.0, 2.0])
    monkeypatch.setattr("deepres.throughput.time.perf_counter", lambda: next(clock))
    for waited_s in (5.0, 0.5):
        throughput.count(8, waited_s)
    assert throughput.data_wait_share == 0.25
