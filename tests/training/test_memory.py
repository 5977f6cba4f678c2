"""The cap of a process's memory, in a process of its own."""

import subprocess
import sys

CHILD = """
import torch
from training.memory import HostGauge, OutOfMemory, fits, peak_of

MB = 10**6
torch.ones(1000) @ torch.ones(1000)
before = HostGauge(None)
budget = before.held_bytes() + 300 * MB
gauge = HostGauge(budget)
assert 0 < budget - gauge.limit_bytes < 60 * MB

peak = peak_of(lambda: torch.ones(25 * MB).sum(), gauge)
assert 95 * MB < peak - gauge.held_bytes() < 130 * MB, (peak, gauge.held_bytes())
# What was let go is given back, and the next peak does not count it.
assert peak_of(lambda: torch.ones(2 * MB).sum(), gauge) < peak - 60 * MB

try:
    peak_of(lambda: torch.ones(200 * MB).sum(), gauge)
except OutOfMemory:
    assert gauge.whole_peak_bytes < budget
else:
    raise AssertionError("more than the budget was to be had")
assert fits(lambda: torch.ones(25 * MB).sum())
try:
    fits(lambda: torch.ones(2) @ torch.ones(3))
except RuntimeError as error:
    assert "size" in str(error)
else:
    raise AssertionError("another error was taken for a lack of memory")
gauge.let_go()
torch.ones(200 * MB).sum()
print("well")
"""


def test_memory_beyond_a_budget_is_refused_and_what_fits_goes_on():
    child = subprocess.run(
        [sys.executable, "-c", CHILD], capture_output=True, text=True, check=False, timeout=120
    )

    assert child.stdout == "well\n", child.stderr


THREADS = """
import torch
from evaluation.resident import level_bytes
from training.memory import HostGauge

torch.set_num_threads(4)
values = torch.empty(4, 2**17).numpy()
HostGauge(level_bytes())
torch.from_numpy(values).add_(1)
print("well")
"""


def test_all_threads_run_before_memory_is_refused_which_would_end_the_process():
    child = subprocess.run(
        [sys.executable, "-c", THREADS], capture_output=True, text=True, check=False, timeout=120
    )

    assert child.stdout == "well\n", child.stderr


HOLES = """
import torch
from evaluation.resident import PeakMeter, level_bytes
from training.memory import HostGauge, fits

MB = 10**6
meter = PeakMeter()
budget = level_bytes() + 700 * MB
gauge = HostGauge(budget)
gauge.keep_freed_memory()
held = [torch.ones(2 * MB) for _ in range(70)]
# The last one stays above all that is let go of, so the heap keeps its size, with a hole in it.
del held[:-1]
gauge.return_freed_memory()
assert level_bytes() < budget - 550 * MB, "what was let go of is still there"
more = []

def take():
    while True:
        more.append(torch.ones(MB // 8))

assert not fits(take)
del more[:]
assert not fits(lambda: torch.ones(175 * MB))
peak = meter.take()
assert peak <= budget, (peak, budget)
print("well")
"""


def test_a_hole_in_the_heap_is_no_room_beyond_the_budget():
    child = subprocess.run(
        [sys.executable, "-c", HOLES], capture_output=True, text=True, check=False, timeout=120
    )

    assert child.stdout == "well\n", child.stderr
