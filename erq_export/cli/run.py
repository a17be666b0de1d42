"""`erq-export MODEL …`: the main job."""

import sys
from pathlib import Path
from typing import Any

import rich_click as click

from erq_export.cli.helper import helps
from erq_export.cli.opened import opened
from erq_export.cli.options import options_of, store_options
from erq_export.contract.records import Spec
from erq_export.contract.spec import DataSpec, DeploySpec, EvaluateSpec, MethodSpec, ModelSpec
from erq_export.flow.job import Job, resolve

GROUPS: dict[str, tuple[type[Spec], tuple[str, ...]]] = {
    "Model": (ModelSpec, ("checkpoint", "pretrained", "model_args", "preprocess", "canvas")),
    "Data": (DataSpec, ("data", "calib", "seed", "val", "coco", "class_map", "val_images", "workers")),
    "Quantization": (MethodSpec, ("bits", "budget", "method", "options")),
    "Deployment": (DeploySpec, ("targets", "attention", "pack", "capability", "max_batch")),
    "Checks": (
        EvaluateSpec,
        ("compare", "seeds", "max_drop", "min_agreement", "max_logit_error", "sensitivity", "bench"),
    ),
}
MORE = {"Quantization": ("--published",)}
OUTPUT = ("--out", "--overwrite", "--store", "--no-store", "--device", "--help")


def grouped(command: Any) -> Any:
    """The options of every slice, a panel a slice."""
    command = click.option_panel("Output", options=list(OUTPUT))(command)
    for title, (spec, names) in reversed(GROUPS.items()):
        command = options_of(spec, names)(command)
        command = click.option_panel(title, options=[*names, *MORE.get(title, ())])(command)
    return command


def job_of(given: dict[str, Any]) -> Job:
    """The job that the words mean, by parameter name; what was not typed is None, or empty."""
    asked = {name: value for name, value in given.items() if value not in (None, (), {}) and name != "options"}
    if "targets" in asked:
        asked["targets"] = tuple(dict.fromkeys(asked["targets"]))
    return resolve(asked, options=given["options"], typed=True)


@click.command()
@click.argument("name", metavar="MODEL")
@grouped
@options_of(Job, ("published", "device"))
@store_options
@click.option("--out", required=True, metavar="DIR", help="folder to write; must be new or empty")
@click.option("--overwrite", is_flag=True, help="replace the run that --out holds, once the new bundle is complete")
def run(out: str, overwrite: bool, store: Path | None, no_store: bool, **given: Any) -> None:
    """The main job: calibrate MODEL, export it, build its engines, validate all of it.

    MODEL is an alias (erq-export models) or any timm name whose blocks are known.
    """
    job = job_of(given)
    if helps(job):
        return
    from erq_export.contract.output.folder import OutputFolder
    from erq_export.flow import preflight

    folder = OutputFolder.named(out)
    preflight.check(job, folder, overwrite=overwrite)
    from erq_export.flow import api
    from erq_export.flow.terminal import Terminal

    terminal = Terminal()
    with opened(store, no_store) as kept:
        report = api.run(job, out=folder.path, store=kept, ui=terminal, overwrite=overwrite, command=sys.argv[1:])
        terminal.show(report, folder.path)
