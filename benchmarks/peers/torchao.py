"""torchao's weight-only int8, one scale per channel, kept with `torch.save`."""

import sys
from pathlib import Path

import torch
from torchao.quantization import Int8WeightOnlyConfig, quantize_
from transformers import AutoModelForCausalLM

from benchmarks.stopwatch import Stopwatch


def _is_wanted(module: torch.nn.Module, name: str) -> bool:
    return isinstance(module, torch.nn.Linear) and name != "lm_head"


def main() -> None:
    folder, output = sys.argv[1:]
    stopwatch = Stopwatch()
    stopwatch.begin()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    quantize_(model, Int8WeightOnlyConfig(set_inductor_config=False), filter_fn=_is_wanted)
    Path(output).mkdir()
    torch.save(model.state_dict(), Path(output) / "model.pt")
    stopwatch.end()


if __name__ == "__main__":
    main()
