"""`make demo`: two models through the whole service, by the commands that a user would type."""

import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from jobs.settings import Settings
from local.up import stack

_BIN = Path(sys.executable).parent
_EXAMPLES = Path("examples")


def _type(command: list[str], env: dict[str, str], shown: str | None = None) -> None:
    print(f"\n$ {shown or shlex.join(command)}", flush=True)
    subprocess.run(command, env=env, check=True)


def _make(script: str, target: str, env: dict[str, str]) -> None:
    command = [sys.executable, str(_EXAMPLES / script), target]
    _type(command, env, shown=f"python examples/{script} {Path(target).name}")


def _compress(model: Path, recipe: str, folder: Path, env: dict[str, str]) -> None:
    command = [
        str(_BIN / "modelpress"), "run", str(model),
        "--recipe", str(_EXAMPLES / "recipes" / recipe), "-o", str(folder / f"{model.stem}-int8"),
    ]  # fmt: skip
    shown = f"modelpress run {model.name} --recipe examples/recipes/{recipe} -o {model.stem}-int8"
    _type(command, env, shown=shown)
    print(f"\n$ ls -l {model.stem}-int8")
    for path in sorted((folder / f"{model.stem}-int8").iterdir()):
        print(f"{path.stat().st_size:>12,}  {path.name}")


def main() -> int:
    """Run the demo in a folder of its own, which is removed afterwards.

    Returns:
        The exit status: 0 where both jobs succeeded.
    """
    with tempfile.TemporaryDirectory(prefix="modelpress-demo-") as name:
        folder = Path(name)
        settings = Settings(port=0, data_dir=folder / "data")
        print("Starting Redis, the service and a worker …", flush=True)
        try:
            with stack(settings) as (url, _):
                env = os.environ | {"MODELPRESS_URL": url}
                print(f"Ready at {url}")
                _make("make_two_layer_net.py", str(folder / "net.safetensors"), env)
                _compress(folder / "net.safetensors", "tutorial.yaml", folder, env)
                _make("make_llama.py", str(folder / "llama"), env)
                _compress(folder / "llama", "int8-weights.yaml", folder, env)
        except subprocess.CalledProcessError as error:
            print(f"demo failed: exit status {error.returncode}", file=sys.stderr)
            return 1
    print("\nBoth jobs went through HTTP, Redis, Celery and a runner. Start your own: make up")
    return 0


if __name__ == "__main__":
    sys.exit(main())
