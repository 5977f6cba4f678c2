"""Whether memory that was let go of stays in the process; each way in a process of its own."""

import subprocess
import sys

import pytest

_SCRIPT = """
import torch
from evaluation import freed_memory
from evaluation.resident import level_bytes

getattr(freed_memory, "{way}")()
pieces = [torch.ones(5_000_000) for _ in range(10)]
last = torch.ones(5_000_000)
full = level_bytes()
del pieces
print(full - level_bytes())
freed_memory.give_back_what_is_kept()
print(full - level_bytes())
"""


@pytest.mark.parametrize(("way", "is_given_back"), [
    ("give_freed_memory_back", True), ("keep_freed_memory", False),
])  # fmt: skip
def test_what_is_let_go_of_is_given_back_or_kept_until_it_is_asked_for(way, is_given_back):
    command = [sys.executable, "-c", _SCRIPT.format(way=way)]

    ran = subprocess.run(command, check=True, capture_output=True, text=True)

    at_once, in_the_end = (int(line) for line in ran.stdout.split())
    assert (at_once > 190e6) == is_given_back
    assert at_once < 10e6 or is_given_back
    assert in_the_end > 190e6
