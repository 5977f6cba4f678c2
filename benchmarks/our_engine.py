"""Our engine as a process to be measured: `python -m benchmarks.our_engine MODEL OUTPUT RECIPE`."""

import json
import sys
from pathlib import Path

from benchmarks.stopwatch import Stopwatch
from engine.pipeline import compress
from jobs.recipe import parse_recipe


def main() -> None:
    model, output, recipe = sys.argv[1:]
    Path(output).mkdir()
    stopwatch = Stopwatch()
    stopwatch.begin()
    compress(
        Path(model), Path(output), parse_recipe(json.loads(recipe)), on_progress=lambda _: None
    )
    stopwatch.end()


if __name__ == "__main__":
    main()
