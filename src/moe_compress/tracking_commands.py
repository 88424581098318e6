"""`kedro tracking`: send to the tracking server what was kept while it was away."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from moe_compress.command_line import command

if TYPE_CHECKING:
    from moe_compress.registry.delivery import Delivery

SERVER_AWAY = 3

EXIT_CODES = "Exit codes: 0 nothing is kept any more, 1 refused, 2 wrong usage, 3 the server is still away."


@click.group(name="tracking", epilog=EXIT_CODES)
def tracking() -> None:
    """See to what runs told MLflow while its server was away; docs/tracking.md."""


@command(tracking, "sync", EXIT_CODES, "kedro tracking sync")
@click.option("--env", "-e", help="Environment under conf/, for its mlflow.yml.")
def sync(env: str | None) -> int:
    """Send kept runs, their files and registrations; what the server refuses is put aside with its reason."""
    from moe_compress.operations.project import open_context

    open_context(env)
    delivery = send_kept()
    if delivery is None:
        click.echo("Nothing is kept.")
        return 0
    return SERVER_AWAY if delivery.left else int(bool(delivery.refused))


def send_kept() -> Delivery | None:
    """Send what is kept for the configured server and say what became of it; None if there is nothing."""
    from moe_compress.registry.delivery import send_kept

    delivery = send_kept()
    for sentence in describe(delivery) if delivery else ():
        click.secho(sentence, fg="yellow", err=True)
    return delivery


def describe(delivery: Delivery) -> list[str]:
    """Return what became of kept entries, in sentences."""
    said = [f"Sent to the tracking server, kept while it was away: {delivery.sent}."] if delivery.sent else []
    said += [f"Registered as {version}." for version in delivery.registered]
    said += [f"Refused, and put aside in {delivery.folder / 'refused'}: {reason}" for reason in delivery.refused]
    if delivery.left:
        said.append(
            f"{len(delivery.left)} entries are kept in {delivery.folder}, because {delivery.reason}; "
            "kedro tracking sync sends them, and so does the next run."
        )
    said += [
        f"The checkpoint for {name} is complete and passed its gates, but is not registered; "
        "kedro tracking sync registers it."
        for name in delivery.registrations
    ]
    return said
