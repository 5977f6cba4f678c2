"""The Trainer of transformers with gradient accumulation: `MODEL ROWS STEPS BATCH MICRO_BATCH`."""

import sys
import tempfile

import numpy as np
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from benchmarks.stopwatch import Stopwatch


def main() -> None:
    folder, rows = sys.argv[1:3]
    steps, batch, micro_batch = map(int, sys.argv[3:])
    ids = torch.from_numpy(np.load(rows)["input_ids"])
    data = [{"input_ids": row, "labels": row} for row in ids]
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as output:
        arguments = TrainingArguments(
            output, max_steps=steps, per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=batch // micro_batch, learning_rate=1e-4, use_cpu=True,
            save_strategy="no", report_to=[], disable_tqdm=True, seed=0,
        )  # fmt: skip
        trainer = Trainer(model=model, args=arguments, train_dataset=data)
        stopwatch = Stopwatch()
        stopwatch.begin()
        trainer.train()
        stopwatch.end()


if __name__ == "__main__":
    main()
