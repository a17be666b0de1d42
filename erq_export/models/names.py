"""Names to architectures: aliases and timm names, with the nearest right one for a wrong one."""

import inspect
from typing import Any

import timm
import torch
from torch import nn

from erq_export.contract.errors import SpecError
from erq_export.contract.inputs import shown
from erq_export.contract.registry import nearest, unknown
from erq_export.models.aliases import ALIASES, DETECTORS, Alias
from erq_export.models.arguments import checked, given

LONGEST_NAME = 200  # twice the longest of timm's
STAGED = "correct it; a ViT takes depth=12 and num_heads=3, a Swin depths=2,2,6,2 and num_heads=3,6,12,24"


def alias_of(name: str) -> Alias:
    """The alias of that name, or any timm name as its own alias; SpecError with the nearest names otherwise."""
    if name in ALIASES:
        return ALIASES[name]
    check_name(name, also=ALIASES | DETECTORS)
    return Alias(timm_name=name)


def check_name(timm_name: str, *, also: dict[str, Alias] | None = None) -> None:
    """SpecError unless this is an architecture in timm's own table, with one of its tags or none.

    timm takes places for names, too: `local-dir:FOLDER` and `hf-hub:ACCOUNT/MODEL` bring their own configuration.
    """
    if any(c in timm_name for c in ":/\\"):
        raise SpecError(
            f"{shown(timm_name)} names a place, not a model: folders and accounts bring configuration of their own",
            fix="the architecture's name (erq-export models), with --checkpoint FILE for the weights",
        )
    if len(timm_name) > LONGEST_NAME:
        raise SpecError(f"no model has a name of {len(timm_name)} characters", fix="erq-export models lists the names")
    architecture, _, tag = timm_name.partition(".")
    if not timm.is_model(architecture):
        known = [*(also or ()), *timm.list_models()]
        if not nearest(timm_name, known):  # more than a thousand names answer nothing
            raise SpecError(
                f"unknown model {timm_name!r}", fix="an alias (erq-export models) or the name of a timm ViT"
            )
        raise unknown("model", timm_name, known)
    if tag and timm_name not in (tags := timm.list_pretrained(f"{architecture}.*")):
        raise unknown(f"pretrained tag of {architecture}", timm_name, tags or [architecture])


def architecture(
    timm_name: str, model_args: dict[str, Any], *, seed: int = 0, source: str = "--model-arg"
) -> nn.Module:
    """The timm model with random weights from `seed`. Nothing but its table's architectures and the arguments of
    `arguments.py` reaches timm; SpecError where one of them is another, or timm refuses it."""
    check_name(timm_name)
    args = checked(model_args, source=source)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = timm.create_model(timm_name, pretrained=False, **args)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, AssertionError, RuntimeError) as e:
        raise SpecError(
            f"timm cannot build {timm_name} with {words(args, source)}: {str(e) or type(e).__name__}", fix=STAGED
        ) from e
    if ignored := [name for name in args if name not in _taken(model, args)]:
        raise SpecError(
            f"timm {timm.__version__} builds {timm_name} without a word about {words({n: args[n] for n in ignored}, source)}",
            fix=f"leave {ignored[0]} out, or a timm whose {type(model).__name__} takes it",
        )
    return model.eval()


def _taken(model: nn.Module, args: dict[str, Any]) -> set[str]:
    """Which of the arguments have done something. A constructor with **kwargs beside named parameters, as Swin's, drops what it
    does not name; one with *args, **kwargs hands all of it on."""
    parameters = inspect.signature(type(model).__init__).parameters
    kinds = {p.kind for p in parameters.values()}
    drops = inspect.Parameter.VAR_KEYWORD in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds
    return {name for name in args if not drops or name in parameters}


def words(args: dict[str, Any], source: str = "--model-arg") -> str:
    """Arguments as they are typed."""
    return " ".join(f"{source} {name}={given(value)}" for name, value in args.items())
