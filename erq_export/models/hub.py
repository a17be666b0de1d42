"""timm's pretrained weights: from its cache, or from the hub where it answers."""

import socket
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
from huggingface_hub import constants, try_to_load_from_cache
from torch import nn

from erq_export.contract.errors import MachineError
from erq_export.models.arguments import checked
from erq_export.models.names import check_name

HUB_TIMEOUT_S = 3.0


def pretrained(timm_name: str, args: dict[str, Any]) -> nn.Module:
    """The model with timm's pretrained weights, from its cache or the hub. MachineError where neither has them, SpecError
    for a name or an argument that must not reach timm."""
    check_name(timm_name)
    args = checked(args)
    fix = (
        "give your own weights with --checkpoint FILE; or fill timm's cache where there is a network "
        f"(python -c \"import timm; timm.create_model('{timm_name}', pretrained=True)\") and copy it here "
        f"({constants.HF_HUB_CACHE.replace(str(Path.home()), '~')}, or where HF_HOME points); "
        "--no-pretrained uses random weights to try the chain"
    )
    problem = f"the pretrained weights of {timm_name} are neither in timm's cache nor can they be downloaded"
    config = timm.get_pretrained_cfg(timm_name)
    hub_id = getattr(config, "hf_hub_id", None)
    if hub_id:
        repository = hub_id if "/" in hub_id and not hub_id.endswith("/") else f"{hub_id}{timm_name}"
        if not _cached(repository) and not _hub_answers():
            raise MachineError(problem, fix=fix)
    try:
        model: nn.Module = timm.create_model(timm_name, pretrained=True, **args)
    except (OSError, RuntimeError) as e:
        raise MachineError(f"{problem}: {str(e).splitlines()[0][:200]}", fix=fix) from e
    return model.eval()


def _cached(repository: str) -> bool:
    names = ("model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(repository, name), str) for name in names)


def _hub_answers() -> bool:
    """Asked once and briefly: the hub's own client retries for a minute. A proxy answers in the hub's place."""
    if constants.HF_HUB_OFFLINE:
        return False
    if urllib.request.getproxies().get("https"):
        return True
    address = urlsplit(constants.ENDPOINT)
    try:
        with socket.create_connection((address.hostname, address.port or 443), timeout=HUB_TIMEOUT_S):
            return True
    except OSError:
        return False
