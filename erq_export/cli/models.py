"""`erq-export models`: the short names, and what stands behind each."""

import json
from typing import Any

import rich_click as click

from erq_export.calibrate.methods.erq import ErqOptions
from erq_export.calibrate.published.papers import as_words
from erq_export.contract.spec import DataSpec
from erq_export.models.aliases import ALIASES, DETECTORS, Alias
from erq_export.models.demo import DEMO_PREPROCESS
from erq_export.models.detectors.architecture import PUBLISHED

PAPER_K = 1  # integers flipped at a time in rounding refinement: the paper's best, and the only one here


@click.command()
@click.option("--json", "as_json", is_flag=True, help="as JSON, for programs")
def models(as_json: bool) -> None:
    """List the short names: the timm tag behind each and its defaults, which are the paper's."""
    listed = {name: described(alias) for name, alias in ALIASES.items()}
    listed["demo"]["preprocess"] = DEMO_PREPROCESS
    detectors = {name: described(alias) for name, alias in DETECTORS.items()}
    if as_json:
        click.echo(json.dumps(listed | detectors, indent=1, ensure_ascii=False))
        return
    head = ("name", "timm tag", "λ of the paper", "T flips", "images --calib", "crop_pct", "")
    rows = [
        (
            name,
            row["timm_name"],
            f"{row['ridge']:g}",
            str(row["flips"]),
            str(row["calib"]),
            str(row["preprocess"]["crop_pct"]),
            "; ".join([row["note"]] * bool(row["note"]) + [f"--{k} {v}" for k, v in _words(row["defaults"])]),
        )
        for name, row in listed.items()
    ]
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    for row in (head, *rows):
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    click.echo("\nDetectors (docs/detectors.md):")
    width = max(map(len, detectors))
    for name, one in detectors.items():
        ridge = f"λ of the paper {one['ridge']:g}" if name in PUBLISHED else "λ chosen"
        published = f"--checkpoint {PUBLISHED[name].file}" if name in PUBLISHED else str(one["note"])
        canvas = f"--canvas {one['defaults']['canvas']}"
        click.echo(f"{name:<{width}}  {ridge}, --calib {one['calib']}, {canvas}; {published}")
    click.echo(f"\nk = {PAPER_K}: rounding refinement flips one integer at a time. An option that is given wins.")
    for line in as_words():
        click.echo(line)
    click.echo(
        "MODEL may be any timm name of the vit and swin families, with --model-arg and --checkpoint for your own."
    )


def described(alias: Alias) -> dict[str, Any]:
    """What is listed of an alias: the paper's λ, T and number of images among it."""
    general = {"ridge": alias.paper_ridge, "flips": ErqOptions().flips, "calib": DataSpec().calib}
    return {
        "timm_name": alias.timm_name,
        "in_paper": alias.in_paper,
        **{name: alias.options.get(name, alias.defaults.get(name, value)) for name, value in general.items()},
        "k": PAPER_K,
        "preprocess": alias.preprocess,
        "defaults": {name: value for name, value in alias.defaults.items() if name not in general},
        "note": alias.note,
    }


def _words(defaults: dict[str, Any]) -> list[tuple[str, Any]]:
    """Options and values as they are typed, one pair for each of a repeatable option's values."""
    return [(k, v) for k, value in defaults.items() for v in (value if isinstance(value, tuple) else (value,))]
