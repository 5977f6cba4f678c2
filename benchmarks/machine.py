"""What the numbers were measured on, without names or places."""

import os
import platform
import re
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import psutil


def describe_machine(*packages: str) -> str:
    """Say what this machine is and how busy it was just before.

    Args:
        packages: The distributions whose versions matter.

    Returns:
        Two sentences.
    """
    memory = psutil.virtual_memory().total / 1024**3
    load = os.getloadavg()[0]
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return (
        f"Measured on {datetime.now(UTC):%Y-%m-%d}: {psutil.cpu_count()} cores "
        f"({_processor()}), {memory:.0f} GiB of RAM, Linux {platform.release().split('-')[0]}, "
        f"Python {platform.python_version()}, {versions}. "
        f"Load average of the minute before: {load:.1f}."
    )


def describe_program(name: str, *arguments: str) -> str:
    """Give a program's version as it says it itself.

    Args:
        name: The program.
        arguments: What makes it tell.

    Returns:
        Such as `nginx 1.22.1`, or that it is not installed.
    """
    path = find_program(name)
    if path is None:
        return f"no {name}"
    said = subprocess.run([path, *arguments], capture_output=True, text=True, check=False)
    found = re.search(r"\d+(\.\d+)+", said.stdout + said.stderr)
    return f"{name} {found[0] if found else '?'}"


def find_program(name: str) -> str | None:
    """Find a program on the path, or where distributions keep servers."""
    return shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin")


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()
