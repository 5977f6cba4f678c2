"""Plain PyTorch that has the whole batch in memory at once: `MODEL ROWS STEPS BATCH`."""

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from benchmarks.stopwatch import Stopwatch


def main() -> None:
    folder, rows = sys.argv[1:3]
    steps, batch = map(int, sys.argv[3:])
    ids = torch.from_numpy(np.load(rows)["input_ids"])
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.0)
    stopwatch = Stopwatch()
    stopwatch.begin()
    for step in range(steps):
        chosen = ids[torch.arange(step * batch, (step + 1) * batch) % len(ids)]
        loss = model(input_ids=chosen, labels=chosen).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        print(float(loss), file=sys.stderr)
    stopwatch.end()


if __name__ == "__main__":
    main()
