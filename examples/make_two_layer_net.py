"""Make the tutorial's model: two linear layers with a ReLU between, 101,110 parameters.

    python examples/make_two_layer_net.py net.safetensors

The seed is fixed, so the file has the same bytes each time.
"""

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file


def make_net() -> torch.nn.Sequential:
    """Build the net with seeded weights."""
    torch.manual_seed(0)
    return torch.nn.Sequential(
        torch.nn.Linear(1000, 100),
        torch.nn.ReLU(),
        torch.nn.Linear(100, 10),
    )


def main() -> None:
    """Save the net to the path given as the only argument."""
    if len(sys.argv) != 2:
        sys.exit(f"usage: {sys.argv[0]} net.safetensors")
    path = Path(sys.argv[1])
    save_file(make_net().state_dict(), path)
    print(f"{path}: {path.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
