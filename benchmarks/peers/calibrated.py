"""llm-compressor's `oneshot` with data: `MODEL OUTPUT RECIPE ROWS`.

RECIPE is one of `RECIPES`; ROWS an .npz with `input_ids`, as our jobs are given it.
"""

import sys

import numpy as np
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.gptq import GPTQModifier
from llmcompressor.modifiers.pruning import WandaPruningModifier
from llmcompressor.modifiers.quantization import QuantizationModifier
from transformers import AutoModelForCausalLM

from benchmarks.stopwatch import Stopwatch

_SCHEMES = {"w8a16": "W8A16", "w8a8": "INT8"}
RECIPES = {
    "wanda 50 %": lambda: WandaPruningModifier(
        sparsity=0.5, targets=["Linear"], ignore=["re:.*lm_head"]
    ),
    **{
        f"{scheme}, nearest": lambda scheme=scheme: QuantizationModifier(
            targets="Linear", scheme=_SCHEMES[scheme], ignore=["lm_head"]
        )
        for scheme in _SCHEMES
    },
    **{
        f"{scheme}, gptq": lambda scheme=scheme: GPTQModifier(
            targets="Linear", scheme=_SCHEMES[scheme], ignore=["lm_head"]
        )
        for scheme in _SCHEMES
    },
}


def main() -> None:
    folder, output, recipe, rows = sys.argv[1:]
    ids = np.load(rows)["input_ids"].tolist()
    data = Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * len(row) for row in ids]})
    stopwatch = Stopwatch()
    stopwatch.begin()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto")
    oneshot(
        model=model, dataset=data, recipe=RECIPES[recipe](), num_calibration_samples=len(ids),
        max_seq_length=len(ids[0]), shuffle_calibration_samples=False,
    )  # fmt: skip
    model.save_pretrained(output, save_compressed="nearest" in recipe or "gptq" in recipe)
    stopwatch.end()


if __name__ == "__main__":
    main()
