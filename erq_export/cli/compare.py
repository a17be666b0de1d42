"""`erq-export compare OUT1 OUT2 …`: finished runs side by side."""

from pathlib import Path

import rich_click as click

from erq_export.cli.places import PLACE


@click.command()
@click.argument("outs", metavar="OUT…", type=PLACE, nargs=-1)
@click.option("--out", "file", type=PLACE, metavar="FILE", help="write FILE.md, FILE.html or FILE.json too")
@click.option("--overwrite", is_flag=True, help="replace the file that --out names")
def compare(outs: tuple[Path, ...], file: Path | None, *, overwrite: bool) -> None:
    """Put finished runs side by side: bits, accuracy, errors, parity, sizes, cost and speed.

    Says what else is not the same: another model, other images, another machine.
    """
    from erq_export.flow import side_by_side
    from erq_export.flow.terminal import Terminal

    if file is not None:
        side_by_side.check_file(file, overwrite=overwrite)
    found = side_by_side.compare(*outs)
    Terminal().side_by_side(found)
    if file is not None:
        side_by_side.write(found, file, overwrite=overwrite)
