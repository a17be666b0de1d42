"""`erq-export check FILE`: lint any Q/DQ graph, ours or foreign, for a target."""

import sys
from pathlib import Path

import rich_click as click

from erq_export.cli.places import PLACE
from erq_export.contract.errors import FOUND, SpecError
from erq_export.contract.targets import TARGETS


@click.command()
@click.argument("file", type=PLACE, required=False)
@click.option("--target", help=f"what it is meant for: {', '.join(TARGETS)}")
@click.option("--strict", is_flag=True, help="exit code 8 for warnings too")
@click.option("--json", "as_json", is_flag=True, help="print the findings as JSON and nothing else")
@click.option("--rules", "list_rules", is_flag=True, help="print every rule and the targets it concerns")
def check(file: Path | None, target: str | None, *, strict: bool, as_json: bool, list_rules: bool) -> None:
    """Say what in a Q/DQ graph, ours or foreign, TARGET refuses, computes differently or runs in floating point.

    Errors give exit code 8, warnings alone 0.
    """
    from erq_export.exporters.lint import check as lint

    if list_rules:
        click.echo(lint.table())
        return
    if file is None or target is None:
        missing = "FILE" if file is None else "--target"
        raise SpecError(f"{missing} is missing", fix=f"erq-export check FILE.onnx --target {' | '.join(TARGETS)}")
    found = lint.check(file, target)
    click.echo(found.as_json() if as_json else found.as_text())
    if found.errors or (strict and found.warnings):
        sys.exit(FOUND)
