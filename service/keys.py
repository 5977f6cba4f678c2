"""``python -m service.keys create``: make a key on the server itself, as the first one must be."""

import argparse
import sys
from datetime import UTC, datetime, timedelta

import structlog

from jobs.keys import SCOPES, KeyStore
from jobs.logs import configure_logging
from jobs.settings import Settings
from jobs.tenants import DEFAULT_TENANT, is_tenant

#: What to type where the service does not start for want of a key.
FIRST_KEY = "python -m service.keys create --name first"


def main(arguments: list[str]) -> int:
    """Make a key and print it, alone, on standard output.

    Args:
        arguments: The command line.

    Returns:
        The exit status.
    """
    asked = _parser().parse_args(arguments)
    settings = Settings()
    configure_logging(settings)
    settings.data_dir.mkdir(parents=True, exist_ok=True)
    expires_at = datetime.now(UTC) + timedelta(days=asked.days) if asked.days else None
    store = KeyStore(settings.data_dir, settings.key_secret.get_secret_value())
    text, key = store.create(asked.tenant, asked.scopes, asked.name, expires_at)
    structlog.get_logger("audit").info(
        "audit", key=None, tenant=asked.tenant, what="create key", id=key.id, outcome="done"
    )
    sys.stdout.write(f"{text}\n")
    sys.stderr.write("This is the key. It is shown once and cannot be read again.\n")
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m service.keys")
    create = parser.add_subparsers(required=True).add_parser("create", help="make a key")
    create.add_argument("--tenant", type=_tenant, default=DEFAULT_TENANT)
    create.add_argument(
        "--scopes", type=_scopes, default=SCOPES, help="some of read,submit,admin; default: all"
    )
    create.add_argument("--name", required=True, help="what the key is for")
    create.add_argument("--days", type=int, help="after how many days it ends; default: never")
    return parser


def _tenant(text: str) -> str:
    if not is_tenant(text):
        raise argparse.ArgumentTypeError("not 1 to 32 of a-z, 0-9 and -")
    return text


def _scopes(text: str) -> tuple[str, ...]:
    scopes = tuple(text.split(","))
    if not set(scopes) <= set(SCOPES):
        raise argparse.ArgumentTypeError(f"not some of {','.join(SCOPES)}")
    return scopes


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
