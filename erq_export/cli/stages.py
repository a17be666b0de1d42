"""`erq-export build | validate | inspect OUT`: one stage of a run again, from what its folder holds."""

from pathlib import Path
from typing import Any

import rich_click as click
from msgspec import structs

from erq_export.cli.helper import helps
from erq_export.cli.opened import opened
from erq_export.cli.options import options_of, store_options
from erq_export.cli.places import PLACE
from erq_export.contract.engine_spec import EngineSpec
from erq_export.contract.spec import DataSpec, EvaluateSpec

OUT = click.argument("out", type=PLACE)


@click.command()
@OUT
@store_options
@click.option("--to", "targets", multiple=True, help="targets to build (default: those of the run)")
@click.option(
    "--batch", metavar="N,N,N", help="batches that engines take: smallest, tuned for, largest [default: the run's]"
)
@options_of(EngineSpec, ("capability", "workspace", "hardware"))
@click.option(
    "--any-version", is_flag=True, help="an engine that later TensorRT versions load too; may be slower (tensorrt)"
)
@click.option(
    "--twin", is_flag=True, help="build the float model in FP16 too, which the engines' speed is compared with"
)
@click.option("--checkpoint", type=PLACE, metavar="FILE", help="where the float model's weights lie now, for --twin")
def build(
    out: Path,
    targets: tuple[str, ...],
    store: Path | None,
    no_store: bool,
    twin: bool,
    checkpoint: Path | None,
    **engine: Any,
) -> None:
    """Write the graphs and build the engines of a run again, from its bundle."""
    from erq_export.flow import preflight
    from erq_export.flow.job import read_run

    job = read_run(out)
    targets = preflight.buildable(job.deploy, targets)
    asked = EngineSpec.typed(job.deploy, engine)
    preflight.check_machine(targets, asked)
    if checkpoint is not None:
        job = structs.replace(job, model=structs.replace(job.model, checkpoint=str(checkpoint)))
    from erq_export.flow.detection.asked import is_detector, require_classifier
    from erq_export.flow.terminal import Terminal

    if is_detector(job.model.name):
        for word, given in (("--twin", twin), ("--checkpoint", checkpoint), ("--batch", engine.get("batch"))):
            if given:
                require_classifier(job.model.name, word)
        from erq_export.flow.detection.run import build as build_parts

        with opened(store, no_store) as kept:
            build_parts(job, out, Terminal(), store=kept, targets=targets, engine=asked)
        return
    from erq_export.flow import build as flow

    with opened(store, no_store) as kept:
        flow.build(job, out, Terminal(), store=kept, targets=targets, engine=asked, twin=twin)


@click.command()
@OUT
@options_of(DataSpec, ("val", "coco", "class_map", "val_images", "workers"))
@options_of(EvaluateSpec, ("max_drop", "min_agreement", "max_logit_error", "sensitivity"))
@store_options
@click.option("--bisect", is_flag=True, help="name the first block and site that differs, and write what shows it")
def validate(out: Path, store: Path | None, no_store: bool, bisect: bool, **words: Any) -> None:
    """Measure a run again, from its bundle, graphs and engines; writes a new report.

    On the run's own held-out images and with its bounds, or with others. torchrun shares the images out:
    torchrun --nproc-per-node 2 -m erq_export.cli validate OUT

    --bisect measures nothing: it walks from the reference to each graph and writes OUT/bisect.
    """
    from erq_export.flow.job import measured_otherwise, read_run

    job = measured_otherwise(read_run(out), words)
    if helps(job, alone=bisect):
        return
    from erq_export.flow import preflight
    from erq_export.flow import run as flow
    from erq_export.flow.detection.asked import is_detector, require_classifier
    from erq_export.flow.terminal import Terminal

    terminal = Terminal()
    if is_detector(job.model.name):
        if bisect:
            require_classifier(job.model.name, "--bisect")
        from erq_export.flow.detection.run import validate as validate_parts

        with opened(store, no_store) as kept:
            terminal.show(validate_parts(job, out, terminal, store=kept), out)
        return
    preflight.check_images(job)
    with opened(store, no_store) as kept:
        if not bisect:
            terminal.show(flow.validate(job, out, terminal, store=kept), out)
            return
        from erq_export.flow import bisect as walk

        found = walk.bisect(job, out, terminal, store=kept)
    for record in found:
        click.echo(record.says())
    walk.raise_differences(found, out)


@click.command()
@OUT
def inspect(out: Path) -> None:
    """Say what a run found and what its folder holds."""
    from erq_export.flow.inspect import inspected
    from erq_export.flow.terminal import Terminal

    Terminal().show(inspected(out), out)
