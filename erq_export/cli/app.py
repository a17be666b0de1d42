"""The command line's frame: commands by name, loaded when they are called, and errors as exit codes."""

import difflib
import os
import sys
from importlib import import_module

import rich_click as click
from click.exceptions import NoArgsIsHelpError

from erq_export import __version__
from erq_export.cli.said import misuse, refusal
from erq_export.contract.errors import ErqError, SpecError

INTERRUPTED = 130  # as a shell reports SIGINT
MAIN = "run"
COMMANDS: dict[str, str] = {
    MAIN: "erq_export.cli.run:run",
    "build": "erq_export.cli.stages:build",
    "bench": "erq_export.cli.bench:bench",
    "validate": "erq_export.cli.stages:validate",
    "inspect": "erq_export.cli.stages:inspect",
    "compare": "erq_export.cli.compare:compare",
    "check": "erq_export.cli.check:check",
    "models": "erq_export.cli.models:models",
    "methods": "erq_export.cli.methods:methods",
    "reproduce": "erq_export.cli.reproduce:reproduce",
    "store": "erq_export.cli.store:store",
    "schemas": "erq_export.cli.schemas:schemas",
    "doctor": "erq_export.cli.doctor:doctor",
}


class MainJobByDefault(click.RichGroup):
    """`erq-export vit_s …` is the main job; `erq-export build OUT` and the like are named stages."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        module, name = COMMANDS[cmd_name].split(":")
        command: click.Command = getattr(import_module(module), name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in COMMANDS and not args[0].startswith("-"):
            if args[0].isalpha() and (close := difflib.get_close_matches(args[0][:40], COMMANDS, cutoff=0.7)):
                raise SpecError(f"{args[0][:40]!r} is no command and no model", fix=f"erq-export {close[0]}")
            return MAIN, self.get_command(ctx, MAIN), args
        return super().resolve_command(ctx, args)


@click.group(cls=MainJobByDefault, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, "--version")
def app() -> None:
    """Quantize a timm vision transformer with ERQ, write Q/DQ ONNX, build engines, check all of it.

    \b
    erq-export demo --bits w4a4 --to onnx --out OUT          the bundled model, no data needed
    erq-export vit_s --bits w4a4 --to tensorrt-rtx --data DIR --out OUT
    erq-export run --help                                    every option of the main job
    """


def main() -> None:
    """Entry point: errors a user can act on become two lines and an exit code, anything else keeps its traceback."""
    # Threads that spin between torch's many small operators cost 10 to 30 times the time where cores are shared; read
    # by OpenMP when torch loads, later.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        app(standalone_mode=False)
    except ErqError as e:
        click.echo(refusal(e.problem, e.fix), err=True)
        sys.exit(e.exit_code)
    except NoArgsIsHelpError as e:
        e.show()
        sys.exit(2)
    except click.UsageError as e:
        click.echo(misuse(e), err=True)
        sys.exit(2)
    except (KeyboardInterrupt, click.Abort):
        click.echo("interrupted: finished stages are complete in the output folder, nothing is half-written", err=True)
        sys.exit(INTERRUPTED)
