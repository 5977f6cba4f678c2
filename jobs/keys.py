"""API keys: how one looks, and the files that say whose it is and what it may do.

    DATA_DIR/
      keys/<id>.json    everything about a key but the key itself: of that only an HMAC is kept
      key-secret        the secret of the HMACs, where the settings give none

A key is ``mp_<id>_<secret>_<checksum>``. The checksum tells a key that was cut off or mistyped from
one that is unknown, and lets scanners for leaked secrets be sure. Files, because a wiped Redis must
not lock everybody out, nor let anybody in; they are small, so each request reads its own anew, and
every process knows of a revoked key at once.
"""

import contextlib
import hashlib
import hmac
import os
import re
import secrets
import string
import zlib
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

from pydantic import BaseModel, ConfigDict

from jobs.durable_files import fsync, read_json, write_json

Scope = Literal["read", "submit", "admin"]
SCOPES: tuple[Scope, ...] = get_args(Scope)

_ID_LENGTH, _SECRET_LENGTH, _CHECKSUM_LENGTH, _SHOWN_LENGTH = 8, 32, 6, 4
_ID_LETTERS = string.ascii_lowercase + string.digits
_BASE62 = string.digits + string.ascii_uppercase + string.ascii_lowercase
_ID = re.compile(f"[a-z0-9]{{{_ID_LENGTH}}}")
_TEXT = re.compile(
    f"mp_([a-z0-9]{{{_ID_LENGTH}}})_[0-9A-Za-z]{{{_SECRET_LENGTH}}}_"
    f"([0-9A-Za-z]{{{_CHECKSUM_LENGTH}}})"
)


class Key(BaseModel):
    """What is known about a key; it cannot be used in its place."""

    model_config = ConfigDict(frozen=True)

    id: str
    tenant: str
    scopes: tuple[Scope, ...]
    name: str
    last_characters: str
    created_at: datetime
    expires_at: datetime | None = None
    revoked_at: datetime | None = None
    digest: str

    def flaw(self, now: datetime) -> str | None:
        """Say why the key is no longer good.

        Args:
            now: The time to judge by.

        Returns:
            Words that follow its name, or None where it is good.
        """
        if self.revoked_at is not None:
            return "was revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "has expired"
        return None


class KeyStore:
    """The keys of one deployment.

    Args:
        data_dir: DATA_DIR.
        secret: Of the HMACs; empty for the one in the data folder, made with the first key.
    """

    def __init__(self, data_dir: Path, secret: str = "") -> None:
        self._folder = data_dir.resolve() / "keys"
        self._secret_file = data_dir.resolve() / "key-secret"
        self._secret = secret.encode()

    def create(
        self, tenant: str, scopes: Iterable[Scope], name: str, expires_at: datetime | None = None
    ) -> tuple[str, Key]:
        """Make a key.

        Args:
            tenant: Whose.
            scopes: What it may do.
            name: What it is for, in its owner's words.
            expires_at: When it ends; None for never.

        Returns:
            The key, which nobody can ever read again, and what is known about it, durably.
        """
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        key_id, secret = _draw(_ID_LETTERS, _ID_LENGTH), _draw(_BASE62, _SECRET_LENGTH)
        text = f"mp_{key_id}_{secret}"
        text = f"{text}_{_checksum(text)}"
        key = Key(
            id=key_id,
            tenant=tenant,
            scopes=tuple(scope for scope in SCOPES if scope in set(scopes)),
            name=name,
            last_characters=text[-_SHOWN_LENGTH:],
            created_at=datetime.now(UTC),
            expires_at=expires_at,
            digest=self._digest(text),
        )
        self._write(key)
        return text, key

    def find(self, key_id: str) -> Key | None:
        """Give what is known about a key, or None where it is none of ours."""
        if not _ID.fullmatch(key_id):
            return None
        members = read_json(self._path(key_id))
        return None if members is None else Key.model_validate(members)

    def match(self, text: str) -> Key | None:
        """Find the key that a client presents.

        Args:
            text: As the client sent it, in the form of a key.

        Returns:
            The key, whether or not it is still good; None where it is none of ours.
        """
        form = _TEXT.fullmatch(text)
        key = self.find(form[1]) if form else None
        if key is None or not hmac.compare_digest(self._digest(text), key.digest):
            return None
        return key

    def all(self) -> list[Key]:
        """Give every key, also those that are no longer good, in the order of their making."""
        found = (self.find(key_id) for key_id in self._ids())
        return sorted((key for key in found if key), key=lambda key: (key.created_at, key.id))

    def has_any(self) -> bool:
        """Tell whether a key was ever made here; one that was revoked still closes the door."""
        return next(self._ids(), None) is not None

    def revoke(self, key: Key) -> Key:
        """End a key for good, durably and for every process at once.

        Args:
            key: The key; one that was revoked before stays as it is.

        Returns:
            The key as it is now.
        """
        if key.revoked_at is None:
            key = key.model_copy(update={"revoked_at": datetime.now(UTC)})
            self._write(key)
        return key

    def _ids(self) -> Iterator[str]:
        with contextlib.suppress(FileNotFoundError), os.scandir(self._folder) as entries:
            for entry in entries:
                key_id, _, rest = entry.name.partition(".")
                if rest == "json" and _ID.fullmatch(key_id):
                    yield key_id

    def _path(self, key_id: str) -> Path:
        return self._folder / f"{key_id}.json"

    def _write(self, key: Key) -> None:
        write_json(self._path(key.id), key.model_dump(mode="json"))

    def _digest(self, text: str) -> str:
        if not self._secret:
            self._secret = _read_or_make_secret(self._secret_file)
        return hmac.new(self._secret, text.encode(), hashlib.sha256).hexdigest()


def is_whole(text: str) -> bool:
    """Tell whether a text has the form of a key, its checksum included."""
    form = _TEXT.fullmatch(text)
    return form is not None and form[2] == _checksum(text[: -_CHECKSUM_LENGTH - 1])


def _draw(letters: str, count: int) -> str:
    return "".join(secrets.choice(letters) for _ in range(count))


def _checksum(text: str) -> str:
    number, digits = zlib.crc32(text.encode()), ""
    for _ in range(_CHECKSUM_LENGTH):
        number, digit = divmod(number, len(_BASE62))
        digits = _BASE62[digit] + digits
    return digits


def _read_or_make_secret(path: Path) -> bytes:
    draft = path.with_name(f"{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        return path.read_bytes()
    except FileNotFoundError:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
            file.flush()
            os.fsync(file.fileno())
        # link() fails where another process was faster; then its secret is the one.
        path.hardlink_to(draft)
        fsync(path.parent)
    except FileExistsError:
        pass
    finally:
        draft.unlink(missing_ok=True)
    return path.read_bytes()
