"""Where the peers' virtual environments are."""

from pathlib import Path

ENVIRONMENTS = Path(__file__).parents[2] / ".peers"


def python_of(name: str) -> Path | None:
    """Give the interpreter of a peer's environment, or None where it is not installed."""
    folder = ENVIRONMENTS / name
    return folder / "bin" / "python" if (folder / ".ready").exists() else None
