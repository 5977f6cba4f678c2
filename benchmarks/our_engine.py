"""Our engine as a process to be measured: `python -m benchmarks.our_engine MODEL OUTPUT RECIPE`."""

import json
import sys
from pathlib import Path

from benchmarks.stopwatch import Stopwatch
from engine.pipeline import Progress, compress
from jobs.recipe import parse_recipe


def main() -> None:
    model, output, recipe = sys.argv[1:]
    Path(output).mkdir()
    stopwatch = Stopwatch()
    inspecting = True

    def on_progress(progress: Progress) -> None:
        nonlocal inspecting
        if inspecting and progress.phase != "inspect":
            # What the inspection takes is a process that imports torch and transformers, and the
            # peers' imports are left out too.
            inspecting = False
            stopwatch.begin()

    stopwatch.begin()
    compress(Path(model), Path(output), parse_recipe(json.loads(recipe)), on_progress=on_progress)
    stopwatch.end()


if __name__ == "__main__":
    main()
