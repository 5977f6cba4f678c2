"""What a parquet file shows of itself without a reader of tables: where it begins and ends."""

from pathlib import Path

from jobs.problems import Problem

_MAGIC = b"PAR1"
_LENGTH_BYTES = 4


def require_parquet(path: Path) -> None:
    """Refuse a file that cannot be parquet: it was cut, or is something else.

    Args:
        path: The file.

    Raises:
        Problem: `invalid_artifact`.
    """
    end = _LENGTH_BYTES + len(_MAGIC)
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(len(_MAGIC))
        file.seek(max(0, size - end))
        tail = file.read()
    length = int.from_bytes(tail[:_LENGTH_BYTES], "little")
    is_whole = size >= len(_MAGIC) + end and length <= size - len(_MAGIC) - end
    if not (head == tail[_LENGTH_BYTES:] == _MAGIC and is_whole):
        raise Problem("invalid_artifact", "It is no parquet file.")
