"""The lag of the event loop."""

from __future__ import annotations

from cm_server.loop_lag import LoopLagMonitor

from .dispatching import Clock


def test_lag_is_measured_and_recovers():
    clock, late = Clock(), 0.0
    monitor = LoopLagMonitor(clock.later, lambda: clock.now + late)
    clock.turn(1)
    assert monitor.lag == 0
    late = 0.3
    clock.turn(1)
    assert abs(monitor.lag - 0.3) < 1e-9
    clock.turn(1)
    assert monitor.lag == 0
    monitor.stop()
    clock.turn(5)
    assert not [timer for timer in clock.timers if not timer.cancelled]
