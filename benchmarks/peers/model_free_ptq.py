"""llm-compressor's `model_free_ptq`: shards quantized one by one, without building the model.

Its int8 preset with one scale per channel is also dynamic in the activations, which adds nothing to
the weights; W8A16 would have one scale per 128 weights, and took longer.
"""

import os
import sys

from llmcompressor import model_free_ptq

from benchmarks.stopwatch import Stopwatch


def main() -> None:
    model, output = sys.argv[1:]
    stopwatch = Stopwatch()
    stopwatch.begin()
    model_free_ptq(
        model, output, scheme="INT8", ignore=["lm_head", "re:.*embed_tokens"],
        max_workers=os.cpu_count() or 1, device="cpu",
    )  # fmt: skip
    stopwatch.end()


if __name__ == "__main__":
    main()
