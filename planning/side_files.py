"""Which files beside the weights go into the artifact as they are."""

from collections.abc import Iterable, Iterator
from fnmatch import fnmatchcase
from pathlib import PurePosixPath

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


def find_side_files(names: Iterable[str]) -> Iterator[str]:
    """Yield the files that are copied unchanged, in their order.

    Args:
        names: Files beside the checkpoint's own, relative to its folder.

    Yields:
        Tokenizer, text and JSON files, those of sub-folders included. Weights of sub-folders are
        copied too, where they are safetensors: parts of a pipeline that this job leaves alone.
    """
    for name in names:
        *folders, last = PurePosixPath(name).parts
        is_hidden = any(part.startswith(".") for part in (*folders, last))
        is_unsafe = any(fnmatchcase(last, pattern) for pattern in _CODE_AND_PICKLES)
        if is_hidden or is_unsafe or name in _OURS or last.endswith(".bin.index.json"):
            continue
        is_nested_weight = bool(folders) and last.endswith(".safetensors")
        if is_nested_weight or any(fnmatchcase(last, pattern) for pattern in _SIDE_FILES):
            yield name
