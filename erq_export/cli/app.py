"""The command line: words to one pipeline call, to what is printed, to an exit code."""

import ast
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, get_args

import click

from erq_export import __version__
from erq_export.calibrate.published.papers import as_words, settings
from erq_export.contract.errors import FOUND, ErqError, SpecError
from erq_export.contract.spec import Bits, ModelSpec, QuantSpec
from erq_export.contract.targets import TARGETS, deployable
from erq_export.flow.job import Job
from erq_export.models.aliases import ALIASES, PAPER_K
from erq_export.models.demo import DEMO_PREPROCESS

INTERRUPTED = 130  # as a shell reports SIGINT


class MainJobByDefault(click.Group):
    """`erq-export vit_s …` is the main job; `erq-export build OUT` and the like are named stages."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            return "run", self.commands["run"], args
        return super().resolve_command(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "MODEL --bits w4a4 --to TARGET [OPTIONS]  |  COMMAND …")


@click.group(cls=MainJobByDefault, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version")
def app() -> None:
    """Quantize a timm vision transformer with ERQ, write Q/DQ ONNX, build engines, check all of it.

    \b
    erq-export demo --bits w4a4 --to onnx --out OUT          the bundled model, no data needed
    erq-export vit_s --bits w4a4 --to tensorrt-rtx --data DIR --out OUT
    erq-export run --help                                    every option of the main job
    """


def options_of(spec: type, *, skip: Sequence[str] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Command-line options from a spec's fields that carry a help text: name, type and default are the field's own."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for field in reversed(dataclasses.fields(spec)):
            if "help" not in field.metadata or field.name in skip:
                continue
            many, name = isinstance(field.default, tuple), field.name.replace("_", "-")
            flag = isinstance(field.default, bool)
            command = click.option(
                f"--{name}/--no-{name}" if flag else f"--{name}",
                field.name,
                type=None if flag else _click_type(field),
                default=field.default,
                multiple=many,
                show_default=field.default is not None and field.default != (),
                help=field.metadata["help"],
            )(command)
        return command

    return decorate


def _click_type(field: dataclasses.Field[Any]) -> type:
    """str, int, float or Path as annotated, None and tuple peeled off; Bits are read as text first."""
    kinds = [kind for kind in (*get_args(field.type), field.type) if kind in (int, float, Path)]
    return kinds[0] if kinds else str


def pairs(option: str) -> Callable[[click.Context, click.Parameter, tuple[str, ...]], dict[str, Any]]:
    """A callback that reads repeated NAME=VALUE into a dict; values are Python data where they look like it."""

    def read(_ctx: click.Context, _param: click.Parameter, given: tuple[str, ...]) -> dict[str, Any]:
        found = {}
        for text in given:
            name, equals, value = text.partition("=")
            if not (name and equals and value):
                raise SpecError(f"{option} {text!r} is not NAME=VALUE", fix=f"for example {option} img_size=224")
            try:
                found[name] = ast.literal_eval(value)
            except (ValueError, SyntaxError):
                found[name] = value
        return found

    return read


@app.command(context_settings={"show_default": True})
@click.argument("model")
@click.option("--bits", required=True, help="weight and activation bits: w{2..8}a{3..8}, for example w4a4")
@click.option("--to", "targets", multiple=True, default=("onnx",), help=f"target (repeatable): {', '.join(TARGETS)}")
@click.option("--out", required=True, type=Path, help="folder to write; must be new or empty")
@click.option("--overwrite", is_flag=True, help="replace the run that --out holds, once the new bundle is complete")
@click.option("--checkpoint", help="your own weights: .safetensors, or .pt with a state dict")
@click.option("--no-pretrained", is_flag=True, help="random weights: tries the chain, accuracy means nothing")
@click.option("--model-arg", "model_args", multiple=True, callback=pairs("--model-arg"), help="NAME=VALUE for timm")
@click.option(
    "--preprocess",
    multiple=True,
    callback=pairs("--preprocess"),
    help="NAME=VALUE: mean, std, interpolation, crop_pct, crop_mode instead of timm's configuration",
)
@options_of(QuantSpec)
@options_of(Job)
@click.pass_context
def run(ctx: click.Context, /, **given: Any) -> None:
    """The main job: calibrate MODEL, export it, build its engines, validate all of it.

    MODEL is an alias (erq-export models) or any timm name whose blocks are known.
    """
    job, overwrite = job_of(ctx, given), given["overwrite"]
    job.quant.check_asked([n for n in given if ctx.get_parameter_source(n) == click.core.ParameterSource.COMMANDLINE])
    from erq_export.contract.files import OutputFolder
    from erq_export.flow import preflight

    preflight.check(job.quant, job.capability, OutputFolder(job.out), overwrite=overwrite)
    from erq_export.flow import run as pipeline
    from erq_export.flow.terminal import Terminal

    terminal = Terminal()
    terminal.show(pipeline.run(job, terminal, overwrite=overwrite), job.out)


def job_of(ctx: click.Context, given: dict[str, Any]) -> Job:
    """The job that the words describe; an alias changes the defaults of options that were not given, and so does a paper
    where its reference is all that is wanted (beside other targets it is only compared with them)."""
    alias, paper = ALIASES.get(given["model"]), given["published"]
    alone = not deployable(given["targets"])
    changed = (alias.defaults if alias else {}) | (settings(paper) if paper and alone else {})
    for name, value in changed.items():
        if ctx.get_parameter_source(name) == click.core.ParameterSource.DEFAULT:
            given[name] = value

    def named(spec: type) -> dict[str, Any]:
        return {f.name: given[f.name] for f in dataclasses.fields(spec) if "help" in f.metadata}

    return Job(
        model=ModelSpec(
            name=given["model"],
            checkpoint=given["checkpoint"],
            pretrained=not given["no_pretrained"],
            model_args=given["model_args"],
            preprocess=given["preprocess"],
        ),
        quant=QuantSpec(
            bits=Bits.parse(given["bits"]), targets=tuple(dict.fromkeys(given["targets"])), **named(QuantSpec)
        ),
        out=given["out"],
        **named(Job) | {"compare": tuple(Bits.parse(text) for text in given["compare"])},
    )


@app.command()
@click.argument("out", type=Path)
@click.option("--to", "targets", multiple=True, help="targets to build (default: those of the run)")
def build(out: Path, targets: tuple[str, ...]) -> None:
    """Write the graphs and build the engines of a run again, from its bundle."""
    from erq_export.contract.files import OutputFolder
    from erq_export.flow import preflight

    job = Job.from_json(OutputFolder(out).read_run(), out)
    targets = preflight.buildable(job.quant, targets)
    preflight.check_machine(targets, job.capability)
    from erq_export.flow import run as pipeline
    from erq_export.flow.terminal import Terminal

    pipeline.build(job, Terminal(), targets=targets)


@app.command()
@click.argument("out", type=Path)
def validate(out: Path) -> None:
    """Measure a run again, from its bundle, graphs and engines; writes a new report."""
    from erq_export.contract.files import OutputFolder

    job = Job.from_json(OutputFolder(out).read_run(), out)
    from erq_export.flow import run as pipeline
    from erq_export.flow.terminal import Terminal

    terminal = Terminal()
    terminal.show(pipeline.validate(job, terminal), out)


@app.command()
@click.argument("out", type=Path)
def inspect(out: Path) -> None:
    """Say what a run found and what its folder holds."""
    from erq_export.contract.files import OutputFolder
    from erq_export.flow.terminal import Terminal

    Terminal().show(OutputFolder(out).read_report(), out)


@app.command()
@click.argument("file", type=Path, required=False)
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


@app.command()
@click.option("--json", "as_json", is_flag=True, help="as JSON, for programs")
def models(as_json: bool) -> None:
    """List the short names: the timm tag behind each and its defaults, which are the paper's."""
    listed = {name: alias.to_json() for name, alias in ALIASES.items()}
    listed["demo"]["preprocess"] = DEMO_PREPROCESS
    if as_json:
        click.echo(json.dumps(listed, indent=1, ensure_ascii=False))
        return
    head = ("name", "timm tag", "λ --ridge", "T --flips", "images --calib", "crop_pct", "")
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
    click.echo(f"\nk = {PAPER_K}: rounding refinement flips one integer at a time. An option that is given wins.")
    for line in as_words():
        click.echo(line)
    click.echo(
        "MODEL may be any timm name of the vit and swin families, with --model-arg and --checkpoint for your own."
    )


def _words(defaults: dict[str, Any]) -> list[tuple[str, Any]]:
    """Options and values as they are typed, one pair for each of a repeatable option's values."""
    return [(k, v) for k, value in defaults.items() for v in (value if isinstance(value, tuple) else (value,))]


@app.command()
def doctor() -> None:
    """Say what this machine can do: packages, targets, GPU."""
    from erq_export.flow.doctor import findings

    for line in findings():
        click.echo(line)


def main() -> None:
    """Entry point: errors a user can act on become two lines and an exit code, anything else keeps its traceback."""
    # Threads that spin between torch's many small operators cost 10 to 30 times the time where cores are shared; read
    # by OpenMP when torch loads, later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=False)
    except ErqError as e:
        click.echo(f"error: {e}", err=True)
        sys.exit(e.exit_code)
    except click.UsageError as e:
        e.show()
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: finished stages are complete in the output folder, nothing is half-written", err=True)
        sys.exit(INTERRUPTED)
