"""`erq-export build | validate | inspect OUT`: one stage of a run again, from what its folder holds."""

from pathlib import Path

import rich_click as click

from erq_export.cli.opened import opened
from erq_export.cli.options import store_options
from erq_export.cli.places import PLACE

OUT = click.argument("out", type=PLACE)


@click.command()
@OUT
@store_options
@click.option("--to", "targets", multiple=True, help="targets to build (default: those of the run)")
def build(out: Path, targets: tuple[str, ...], store: Path | None, no_store: bool) -> None:
    """Write the graphs and build the engines of a run again, from its bundle."""
    from erq_export.flow import preflight
    from erq_export.flow.job import read_run

    job = read_run(out)
    targets = preflight.buildable(job.deploy, targets)
    preflight.check_machine(targets, job.deploy.capability)
    from erq_export.flow import run as flow
    from erq_export.flow.terminal import Terminal

    with opened(store, no_store) as kept:
        flow.build(job, out, Terminal(), store=kept, targets=targets)


@click.command()
@OUT
@store_options
def validate(out: Path, store: Path | None, no_store: bool) -> None:
    """Measure a run again, from its bundle, graphs and engines; writes a new report."""
    from erq_export.flow.job import read_run

    job = read_run(out)
    from erq_export.flow import run as flow
    from erq_export.flow.terminal import Terminal

    terminal = Terminal()
    with opened(store, no_store) as kept:
        terminal.show(flow.validate(job, out, terminal, store=kept), out)


@click.command()
@OUT
def inspect(out: Path) -> None:
    """Say what a run found and what its folder holds."""
    from erq_export.flow.inspect import inspected
    from erq_export.flow.terminal import Terminal

    Terminal().show(inspected(out), out)
