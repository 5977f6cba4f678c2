"""bitsandbytes' LLM.int8() by way of transformers, which is how it is documented.

Its weights have one scale per channel; activations are rounded at run time, outliers left alone.
"""

import sys

import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from benchmarks.stopwatch import Stopwatch


def main() -> None:
    folder, output = sys.argv[1:]
    stopwatch = Stopwatch()
    stopwatch.begin()
    model = AutoModelForCausalLM.from_pretrained(
        folder,
        dtype=torch.bfloat16,
        device_map="cpu",
        quantization_config=BitsAndBytesConfig(load_in_8bit=True),
    )
    model.save_pretrained(output)
    stopwatch.end()


if __name__ == "__main__":
    main()
