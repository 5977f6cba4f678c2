"""llm-compressor's `oneshot` with round-to-nearest int8, which needs no calibration data.

The same preset as in `model_free_ptq`.
"""

import sys

import torch
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM

from benchmarks.stopwatch import Stopwatch


def main() -> None:
    folder, output = sys.argv[1:]
    stopwatch = Stopwatch()
    stopwatch.begin()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    recipe = QuantizationModifier(targets="Linear", scheme="INT8", ignore=["lm_head"])
    oneshot(model=model, recipe=recipe)
    model.save_pretrained(output, save_compressed=True)
    stopwatch.end()


if __name__ == "__main__":
    main()
