"""The options of both runs."""

import argparse
import signal
import sys
from pathlib import Path

from benchmarks.page import PAGE


def read_arguments(description: str) -> argparse.Namespace:
    """Read the options, and have a run that is told to end stop what it started.

    Args:
        description: What the run claims.

    Returns:
        `seed`, `jobs`, `workers`, and the `page` to write into.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=2000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--page", type=Path, default=PAGE, help="page with the markers")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    return parser.parse_args()
