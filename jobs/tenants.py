"""Tenants: whose jobs, models and artifacts, and the stores that hold each one's.

A tenant's name begins every key in Redis and every path on the disk, so what belongs to another is
not refused but cannot be named: no id, no equal job and no Idempotency-Key leads there.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass

from redis import Redis

from jobs.blobs import BlobStore, tenants_folder
from jobs.settings import Settings
from jobs.store import JobStore

#: Whose everything is where there are no keys; its keys are the operator's.
DEFAULT_TENANT = "default"

_NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,31}")


def is_tenant(text: str) -> bool:
    """Tell whether a text is a tenant's name, and so is safe in a key or a path."""
    return _NAME.fullmatch(text) is not None


@dataclass(frozen=True)
class Stores:
    """What belongs to one tenant.

    Attributes:
        tenant: Its name.
        jobs: The records of its jobs.
        blobs: Everything of it on the disk.
    """

    tenant: str
    jobs: JobStore
    blobs: BlobStore


class Tenants:
    """The stores of every tenant, each made when it is first asked for.

    Args:
        settings: Where they are.
        redis: The connection that all of them use.

    Attributes:
        redis: The same, for what belongs to the machine rather than to a tenant.
    """

    redis: Redis

    def __init__(self, settings: Settings, redis: Redis) -> None:
        self.redis = redis
        self._settings = settings
        self._made: dict[str, Stores] = {}
        self.stores(DEFAULT_TENANT)

    def stores(self, tenant: str) -> Stores:
        """Give a tenant's stores; its folder is there afterwards.

        Args:
            tenant: Its name.

        Returns:
            The stores, the same ones each time.

        Raises:
            ValueError: It is no tenant's name.
        """
        found = self._made.get(tenant)
        if found is None:
            if not is_tenant(tenant):
                raise ValueError(f"{tenant[:80]!a} is no tenant's name")
            settings = self._settings
            jobs = JobStore(
                self.redis,
                tenant,
                settings.lease_seconds,
                settings.max_attempts,
                settings.quota_queued,
                settings.quota_running,
            )
            # Threads may make the same one twice; all of them then use the first.
            made = Stores(tenant, jobs, BlobStore(settings.data_dir, tenant))
            found = self._made.setdefault(tenant, made)
        return found

    def every(self) -> Iterator[Stores]:
        """Yield the stores of every tenant that has a folder, by name."""
        for path in sorted(tenants_folder(self._settings.data_dir).iterdir()):
            if is_tenant(path.name) and path.is_dir():
                yield self.stores(path.name)
