"""Which files beside the weights go into the artifact as they are."""

from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path

from jobs.checkpoint import INDEX_NAME

#: Data that loaders read; code and pickles are never among it.
_SIDE_FILES = (
    "tokenizer*",
    "*.json",
    "*.txt",
    "*.model",
    "*.tiktoken",
    "*.jinja",
    "*.md",
    "LICEN[CS]E*",
    "NOTICE*",
)
_CODE_AND_PICKLES = ("*.py", "*.pyc", "*.pkl", "*.pickle", "*.pt", "*.pth", "*.bin", "*.so")
#: Written by the job or after it.
_OURS = frozenset({"config.json", INDEX_NAME, "manifest.json"})


def find_side_files(folder: Path) -> Iterator[Path]:
    """Yield the files that are copied unchanged, relative to the folder, in a fixed order.

    Args:
        folder: The model.

    Yields:
        Tokenizer, text and JSON files, those of sub-folders included. Weights of sub-folders are
        copied too, where they are safetensors: parts of a pipeline that this job leaves alone.
    """
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        is_hidden = any(part.startswith(".") for part in relative.parts)
        if is_hidden or path.is_symlink() or not path.is_file() or str(relative) in _OURS:
            continue
        name = path.name
        if any(fnmatchcase(name, pattern) for pattern in _CODE_AND_PICKLES):
            continue
        if name.endswith(".bin.index.json"):
            continue
        is_nested_weight = len(relative.parts) > 1 and name.endswith(".safetensors")
        if is_nested_weight or any(fnmatchcase(name, pattern) for pattern in _SIDE_FILES):
            yield relative
