"""Every setting of the service and the worker, read from the environment in this one place."""

import hashlib
import os
import tempfile
from pathlib import Path
from urllib.parse import quote

from pydantic import ByteSize, Field, SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings, each an environment variable of the same name in capitals."""

    model_config = SettingsConfigDict(extra="ignore")

    host: str = Field("127.0.0.1", description="Address that the service listens on.")
    port: int = Field(8000, ge=0, le=65535, description="Port of the service; 0 takes a free one.")
    data_dir: Path = Field(
        Path(".data"),
        description="Folder of models, jobs and artifacts; Redis too under `make up`.",
    )
    redis_url: str = Field(
        "", description="Redis to use. Empty: `make up` starts its own inside DATA_DIR."
    )
    service_threads: int = Field(
        32, ge=2, description="Threads of the service; whoever waits for a job holds none."
    )
    max_upload: ByteSize = Field(
        ByteSize(1024**4), gt=0, description="Largest upload, such as `200GiB`."
    )
    max_extracted: ByteSize = Field(
        ByteSize(1024**4), gt=0, description="Largest sum of files unpacked from one archive."
    )
    max_long_polls: int = Field(
        4096,
        ge=0,
        description="Long polls and event streams held at once; further ones are answered at once.",
    )
    key_secret: SecretStr = Field(
        SecretStr(""),
        description="Secret of the stored API keys' HMACs. Empty: one is made inside DATA_DIR.",
    )
    quota_bytes: ByteSize = Field(
        ByteSize(0), description="Most bytes that a tenant may store; 0 for no limit."
    )
    quota_uploads: int = Field(
        0, ge=0, description="Most uploads of a tenant at a time; 0 for no limit."
    )
    quota_queued: int = Field(
        0, ge=0, description="Most jobs of a tenant that may wait; 0 for no limit."
    )
    quota_running: int = Field(
        0, ge=0, description="Most jobs of a tenant that may run at a time; 0 for no limit."
    )
    quota_requests: int = Field(
        0, ge=0, description="Most requests of a tenant per minute; 0 for no limit."
    )
    keep_succeeded_days: float = Field(
        0, ge=0, description="Days until a job that succeeded is removed; 0 keeps it for ever."
    )
    keep_failed_days: float = Field(
        0, ge=0, description="Days until a job that failed is removed; 0 keeps it for ever."
    )
    keep_cancelled_days: float = Field(
        0, ge=0, description="Days until a cancelled job is removed; 0 keeps it for ever."
    )
    keep_models_days: float = Field(
        0,
        ge=0,
        description="Days without an upload or a submit of a model until it is removed, and of "
        "a data set; 0 keeps them for ever.",
    )
    disk_reserve: ByteSize = Field(
        ByteSize(256 * 1024**2),
        description="Free disk that no upload or submit may use; running jobs may.",
    )
    queue: str = Field(
        "jobs", description="Celery queue that the service rings and the workers listen to."
    )
    lease_seconds: float = Field(
        30, gt=1, description="A running job whose worker is silent this long is given to another."
    )
    renew_seconds: float = Field(
        1, gt=0, description="How often a worker renews its lease, and so learns of a cancel."
    )
    max_attempts: int = Field(3, ge=1, description="Attempts before a job fails for good.")
    reap_seconds: float = Field(
        2, gt=0, description="How often each process looks for jobs left behind."
    )
    max_runtime_seconds: float = Field(
        86400, gt=0, description="Wall clock of one attempt, where the recipe sets no smaller one."
    )
    device: str = Field(
        "auto", pattern="^(auto|cpu|cuda)$", description="Where a worker computes: auto, cpu, cuda."
    )
    sandbox: str = Field(
        "auto",
        pattern="^(auto|bwrap|none)$",
        description="Around each runner: `bwrap`, `none`, or `auto` for the first where it works.",
    )
    log_level: str = Field("INFO", description="DEBUG, INFO, WARNING or ERROR.")
    log_format: str = Field("json", pattern="^(json|console)$", description="json or console.")

    @property
    def redis(self) -> str:
        """The Redis URL in force."""
        return self.redis_url or f"unix://{self.redis_socket}"

    @property
    def redis_socket(self) -> Path:
        """The socket of the Redis that `make up` starts for this data folder."""
        # A Unix socket's path is limited to about 100 bytes, and Redis's clients do not agree on
        # how to quote one in a URL: a folder that is deep or oddly named gets a short alias.
        path = self.data_dir.resolve() / "redis.sock"
        if len(os.fsencode(path)) < 100 and quote(str(path)) == str(path):
            return path
        digest = hashlib.blake2b(os.fsencode(path), digest_size=8).hexdigest()
        return Path(tempfile.gettempdir()) / f"modelpress-{digest}.sock"
