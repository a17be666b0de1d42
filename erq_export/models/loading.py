"""From a ModelSpec to a prepared model: names resolved, weights read and checked, preprocessing settled."""

import hashlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

import torch
from timm.data import resolve_model_data_config
from torch import nn

from erq_export.contract.errors import SpecError
from erq_export.contract.identity import Identity, Weights
from erq_export.contract.preprocess import Preprocess
from erq_export.contract.records import encode
from erq_export.contract.sites import Stage
from erq_export.contract.spec import ModelSpec
from erq_export.models.arguments import given
from erq_export.models.checkpoints import read_checkpoint, refuse_non_finite
from erq_export.models.demo import DEMO_MODEL_ARGS, DEMO_PREPROCESS, DEMO_WEIGHTS
from erq_export.models.family import Family, family_of
from erq_export.models.hub import pretrained
from erq_export.models.names import alias_of, architecture
from erq_export.models.sizes import check_size


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A prepared float model, ready to be calibrated."""

    model: nn.Module
    family: Family
    identity: Identity

    @cached_property
    def fingerprint(self) -> str:
        """sha256 over the identity and every weight of the prepared model: what a calibration starts from."""
        seen = hashlib.sha256(encode(self.identity))
        for name, tensor in self.model.state_dict().items():
            seen.update(f"{name}\0{tensor.dtype}\0{tuple(tensor.shape)}\0".encode())
            seen.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return seen.hexdigest()

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.family.stages(self.model)


def n_classes(model: nn.Module) -> int:
    """The classes that a model tells apart; 0 where its head was taken away."""
    return int(cast(Any, model).num_classes)


def load(spec: ModelSpec, *, seed: int) -> Loaded:
    """Build the model, put the weights in, check them, prepare it.

    Raises SpecError (unknown name, argument, family), DataError (checkpoint), MachineError (no weights to be had, not
    enough memory).
    """
    alias = alias_of(spec.name)
    args = (DEMO_MODEL_ARGS if spec.name == "demo" else {}) | spec.model_args
    check_size(alias.timm_name, args)
    source: Weights
    if spec.checkpoint is not None:
        model, source = architecture(alias.timm_name, args), "checkpoint"
        digest: str | None = read_checkpoint(model, Path(spec.checkpoint))
    elif not spec.pretrained:
        model, source, digest = architecture(alias.timm_name, args, seed=seed), "random", None
    elif spec.name == "demo":
        model, source = architecture(alias.timm_name, args), "bundled"
        digest = read_checkpoint(model, DEMO_WEIGHTS)
    else:
        model, source, digest = pretrained(alias.timm_name, args), "pretrained", None
    refuse_non_finite(model)
    model = model.float()
    family = family_of(model)
    input_size = family.input_size(model)
    if spec.preprocess.get("input_size", input_size) != input_size:
        raise SpecError(
            f"--preprocess input_size={given(spec.preprocess['input_size'])}, but the model takes {input_size}",
            fix="--model-arg img_size=N changes the model's input",
        )
    base = DEMO_PREPROCESS if spec.name == "demo" else alias.preprocess
    config = resolve_model_data_config(model) | base | {"input_size": input_size}
    preprocess = Preprocess.from_config(config, spec.preprocess)
    identity = Identity(
        name=spec.name,
        timm_name=alias.timm_name,
        model_args=args,
        weights=source,
        weights_sha256=digest,
        family=family.name,
        preprocess=preprocess,
    )
    return Loaded(model=family.prepare(model), family=family, identity=identity)
