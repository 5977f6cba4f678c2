"""`modelpress keys`: make, list and revoke API keys."""

from datetime import UTC, datetime, timedelta
from typing import Any

import click
from rich.table import Table
from rich.text import Text

from modelpress.session import Session
from modelpress.sizes import printable


@click.group("keys")
def keys_group() -> None:
    """Make, list and revoke API keys; takes a key with the scope admin."""


@keys_group.command()
@click.option("--name", required=True, help="What the key is for.")
@click.option(
    "--scopes", default="read,submit", show_default=True, metavar="SCOPES",
    help="What it may do: some of read, submit and admin.",
)  # fmt: skip
@click.option("--tenant", help="Whose; only a key of the tenant default may name another.")
@click.option("--days", type=click.IntRange(min=1), help="How long it is good; else for ever.")
@click.pass_obj
def create(session: Session, name: str, scopes: str, tenant: str | None, days: int | None) -> None:
    """Make a key and print it; it can never be read again."""
    expires_at = datetime.now(UTC) + timedelta(days=days) if days else None
    with session.client() as client:
        made = client.create_key(name, scopes.split(","), tenant=tenant, expires_at=expires_at)
        session.say(f"key {made.get('id')} of {made.get('tenant')}, shown this once:")
        session.answer(made, lambda: str(made.get("key")))


@keys_group.command("list")
@click.pass_obj
def list_keys(session: Session) -> None:
    """List the keys, those that are no longer good too."""
    with session.client() as client:
        keys = client.keys()
        session.answer({"data": keys}, lambda: _render(keys))


@keys_group.command()
@click.argument("key_id", metavar="ID")
@click.pass_obj
def revoke(session: Session, key_id: str) -> None:
    """End the key ID at once and for good."""
    with session.client() as client:
        client.revoke_key(key_id)
        session.answer({"revoked": key_id}, lambda: key_id)


def _render(keys: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("id", "ends in", "tenant", "scopes", "name", "created", "good until"):
        table.add_column(column, overflow="fold")
    for key in keys:
        revoked = key.get("revoked_at")
        cells = (
            key.get("id"),
            key.get("last_characters"),
            key.get("tenant"),
            ",".join(key.get("scopes", ())),
            key.get("name"),
            key.get("created_at"),
            f"revoked {revoked}" if revoked else key.get("expires_at") or "it is revoked",
        )
        table.add_row(*(Text(printable(str(cell))) for cell in cells))
    return table
