"""Give every peer an environment of its own: `python -m benchmarks.peers`.

Their requirements contradict ours and one another's, so each has a virtual environment in `.peers/`
made from the pinned requirements beside its script. One that is there already is left as it is.
Arguments are passed on to pip, such as `--index-url` for another build of torch.
"""

import subprocess
import sys
import venv
from pathlib import Path

from benchmarks.peers.environments import ENVIRONMENTS, python_of


def main() -> None:
    for requirements in sorted(Path(__file__).parent.glob("*.txt")):
        name = requirements.stem
        if python_of(name) is None:
            print(f"Installing {name} …", flush=True)
            try:
                install(ENVIRONMENTS / name, requirements)
            except subprocess.CalledProcessError as error:
                # The others can be compared with all the same.
                print(f"{name} is not installed: {error}", flush=True)


def install(folder: Path, requirements: Path) -> None:
    """Make an environment.

    Args:
        folder: Where; what is there is replaced.
        requirements: What to install.

    Raises:
        subprocess.CalledProcessError: pip could not.
    """
    venv.create(folder, clear=True, with_pip=True)
    pip = [folder / "bin" / "python", "-m", "pip", "install", "--quiet"]
    # torch first and alone, so that pip's options and indexes decide which build of it is taken.
    [torch] = [line for line in requirements.read_text().splitlines() if line.startswith("torch==")]
    subprocess.run([*pip, *sys.argv[1:], torch], check=True)
    subprocess.run([*pip, *sys.argv[1:], "-r", requirements], check=True)
    (folder / ".ready").touch()


if __name__ == "__main__":
    main()
