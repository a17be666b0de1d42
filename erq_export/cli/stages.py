"""`erq-export build | validate | inspect OUT`: one stage of a run again, from what its folder holds."""

from pathlib import Path

import rich_click as click

OUT = click.argument("out", type=Path)


@click.command()
@OUT
@click.option("--to", "targets", multiple=True, help="targets to build (default: those of the run)")
def build(out: Path, targets: tuple[str, ...]) -> None:
    """Write the graphs and build the engines of a run again, from its bundle."""
    from erq_export.flow import preflight
    from erq_export.flow.job import read_run

    job = read_run(out)
    targets = preflight.buildable(job.deploy, targets)
    preflight.check_machine(targets, job.deploy.capability)
    from erq_export.flow import run as flow
    from erq_export.flow.terminal import Terminal

    flow.build(job, out, Terminal(), targets=targets)


@click.command()
@OUT
def validate(out: Path) -> None:
    """Measure a run again, from its bundle, graphs and engines; writes a new report."""
    from erq_export.flow.job import read_run

    job = read_run(out)
    from erq_export.flow import run as flow
    from erq_export.flow.terminal import Terminal

    terminal = Terminal()
    terminal.show(flow.validate(job, out, terminal), out)


@click.command()
@OUT
def inspect(out: Path) -> None:
    """Say what a run found and what its folder holds."""
    from erq_export.contract.output.folder import OutputFolder
    from erq_export.flow.terminal import Terminal

    Terminal().show(OutputFolder(out).read_report(), out)
