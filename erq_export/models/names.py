"""Names to architectures: aliases and timm names, with the nearest right one for a wrong one."""

from typing import Any

import timm
import torch
from torch import nn

from erq_export.contract.errors import SpecError
from erq_export.contract.registry import unknown
from erq_export.models.aliases import ALIASES, Alias


def alias_of(name: str) -> Alias:
    """The alias of that name, or any timm name as its own alias; SpecError with the nearest names otherwise."""
    if name in ALIASES:
        return ALIASES[name]
    architecture, _, tag = name.partition(".")
    if not timm.is_model(architecture):
        raise unknown("model", name, [*ALIASES, *timm.list_models()])
    if tag and name not in (tags := timm.list_pretrained(f"{architecture}.*")):
        raise unknown(f"pretrained tag of {architecture}", name, tags or [architecture])
    return Alias(timm_name=name)


def architecture(timm_name: str, model_args: dict[str, Any], *, seed: int = 0) -> nn.Module:
    """The timm model with random weights from `seed`; SpecError where timm refuses an argument."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model: nn.Module = timm.create_model(timm_name, pretrained=False, **model_args)
    except (TypeError, ValueError, KeyError, AssertionError, RuntimeError) as e:
        given = " ".join(f"--model-arg {k}={v}" for k, v in model_args.items())
        raise SpecError(f"timm cannot build {timm_name} with {given}: {e}", fix="correct the --model-arg") from e
    return model.eval()
