"""`erq-export schemas DIR`: the JSON schema of every file that is written or read."""

from pathlib import Path

import rich_click as click

from erq_export.cli.places import PLACE
from erq_export.cli.said import plain


@click.command()
@click.argument("folder", metavar="DIR", type=PLACE)
def schemas(folder: Path) -> None:
    """Write the JSON schema of every record that is a file into DIR (docs/schemas holds those of this version)."""
    from erq_export.flow.records import write_schemas

    for path in write_schemas(folder):
        click.echo(plain(str(path)))
