"""optimum-quanto's weight-only int8, one scale per channel, kept with safetensors."""

import sys
from pathlib import Path

import torch
from optimum.quanto import freeze, qint8, quantize
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from benchmarks.stopwatch import Stopwatch


def main() -> None:
    folder, output = sys.argv[1:]
    stopwatch = Stopwatch()
    stopwatch.begin()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    quantize(model, weights=qint8, exclude="lm_head")
    freeze(model)
    Path(output).mkdir()
    save_file(model.state_dict(), Path(output) / "model.safetensors")
    stopwatch.end()


if __name__ == "__main__":
    main()
