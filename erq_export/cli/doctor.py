"""`erq-export doctor`: what this machine can do."""

import rich_click as click


@click.command()
def doctor() -> None:
    """Say what this machine can do: packages, targets, GPU."""
    from erq_export.flow.doctor import findings

    for line in findings():
        click.echo(line)
