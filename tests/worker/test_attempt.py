from jobs.job import Progress
from worker.attempt import Pace


def at(done, phase="compress"):
    return Progress(phase=phase, step=1, steps=1, done=done, total=100, unit="bytes")


def test_the_eta_is_what_is_left_at_the_recent_pace():
    pace = Pace()

    first = pace.estimate(at(0), now=10.0)
    second = pace.estimate(at(20), now=12.0)

    assert first.eta_seconds is None
    assert second.eta_seconds == 8.0


def test_old_reports_do_not_count():
    pace = Pace()
    for second in range(20):
        pace.estimate(at(second), now=float(second))
    for step in range(10):
        eta = pace.estimate(at(20 + 8 * step), now=20.0 + step).eta_seconds

    assert eta == (100 - 92) / 8


def test_a_new_phase_starts_a_new_estimate():
    pace = Pace()
    pace.estimate(at(0, "measure"), now=0.0)
    pace.estimate(at(90, "measure"), now=1.0)

    assert pace.estimate(at(1, "compress"), now=2.0).eta_seconds is None
