"""`erq-export reproduce MANIFEST`: a run made again, and whether it came out the same."""

import sys
from pathlib import Path

import rich_click as click

from erq_export.cli.places import PLACE
from erq_export.cli.said import plain
from erq_export.contract.errors import FOUND


@click.command()
@click.argument("manifest", type=PLACE)
@click.option("--data", metavar="DIR", help="where the calibration images lie on this machine")
@click.option("--val", metavar="DIR", help="where the labelled images lie on this machine")
@click.option("--coco", metavar="DIR", help="where the pictures and annotations of a detector lie on this machine")
@click.option("--checkpoint", metavar="FILE", help="where the weights lie on this machine")
@click.option("--out", type=PLACE, metavar="DIR", help="keep what is made; must be new or empty")
def reproduce(manifest: Path, out: Path | None, **given: str | None) -> None:
    """Make the bundle, graphs and engines of a run again from its manifest.json, using nothing that is kept.

    Says for each: identical, or what differs first. Exit code 8 where something differs.
    """
    from erq_export.contract.records import read
    from erq_export.contract.run_manifest import RunManifest

    read(RunManifest, manifest)  # refused before torch loads
    from erq_export.flow.reproduce import reproduce as again
    from erq_export.flow.terminal import Terminal

    changes = {name: value for name, value in given.items() if value is not None}
    found = again(manifest, Terminal(), out=out, changes=changes)
    for verdict in found:
        click.echo(plain(verdict.says()))
    if any(verdict.differs is not None for verdict in found):
        sys.exit(FOUND)
