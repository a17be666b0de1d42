"""From a ModelSpec to a prepared model: names resolved, weights read and checked, preprocessing settled."""

import hashlib
import math
import re
import socket
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import timm
import torch
from huggingface_hub import constants, try_to_load_from_cache
from timm.data import resolve_model_data_config
from timm.models import load_state_dict
from torch import Tensor, nn

from erq_export.aliases import ALIASES, Alias
from erq_export.demo import DEMO_MODEL_ARGS, DEMO_PREPROCESS, DEMO_WEIGHTS
from erq_export.errors import DataError, MachineError, SpecError
from erq_export.images import Preprocess
from erq_export.models import family_of
from erq_export.models.family import Family, Stage
from erq_export.registry import unknown
from erq_export.spec import ModelSpec

HUB_TIMEOUT_S = 3.0


@dataclass(frozen=True, kw_only=True)
class Identity:
    """Everything needed to build the same architecture again, and where the weights came from. No machine paths."""

    name: str
    timm_name: str
    model_args: dict[str, Any]
    weights: str  # "pretrained", "checkpoint", "bundled" or "random"
    weights_sha256: str | None
    family: str
    preprocess: Preprocess


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A prepared float model, ready to be calibrated."""

    model: nn.Module
    family: Family
    identity: Identity

    @property
    def stages(self) -> tuple[Stage, ...]:
        return self.family.stages(self.model)


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


def load(spec: ModelSpec, *, seed: int) -> Loaded:
    """Build the model, put the weights in, check them, prepare it.

    Raises SpecError (unknown name, argument, family), DataError (checkpoint), MachineError (no weights to be had).
    """
    alias = alias_of(spec.name)
    args = (DEMO_MODEL_ARGS if spec.name == "demo" else {}) | spec.model_args
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
            f"--preprocess input_size={spec.preprocess['input_size']}, but the model takes {input_size}",
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


def pretrained(timm_name: str, args: dict[str, Any]) -> nn.Module:
    """The model with timm's pretrained weights, from its cache or the hub. MachineError where neither has them."""
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


def read_checkpoint(model: nn.Module, path: Path) -> str:
    """Load safetensors or a .pt state dict (read with weights_only) strictly; returns the file's sha256.

    Names of the original repositories and of older timm versions are translated (see `renamed`).
    DataError with the first differences, and with the --model-arg that would mend them where it is known.
    """
    if not path.is_file():
        raise DataError(
            f"there is no checkpoint {path}", fix="--checkpoint FILE (.safetensors, or .pt of a state dict)"
        )
    try:
        state: dict[str, Tensor] = load_state_dict(str(path), weights_only=True)
    except Exception as e:
        reason = str(e).splitlines()[0][:200] if str(e) else type(e).__name__
        raise DataError(
            f"cannot read the checkpoint {path}: {reason}",
            fix="a safetensors file, or a .pt that holds only tensors (torch.save(model.state_dict(), FILE))",
        ) from e
    want = model.state_dict()
    state = renamed(state, model)
    wrong = [
        f"{k}: {_shape(state[k])} in the file, {_shape(want[k])} in the model"
        for k in want
        if k in state and state[k].shape != want[k].shape
    ]
    wrong += [f"{k}: missing in the file" for k in want if k not in state]
    wrong += [f"{k}: not in the model" for k in state if k not in want]
    if wrong:
        more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
        raise DataError(
            f"the checkpoint {path} does not fit the model: {'; '.join(wrong[:3])}{more}",
            fix=_fitting_args(state, want),
        )
    model.load_state_dict(state)
    return hashlib.sha256(path.read_bytes()).hexdigest()


def renamed(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state dict under the model's own names, by the filter that timm gives its pretrained files; unchanged where
    the names fit already, or where the filter does not understand them.

    The filter also resamples what has another size. That is not wanted here: a file of another model is refused.
    """
    names = set(model.state_dict())
    translate = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if translate is None or set(state) == names:
        return state
    try:
        found: dict[str, Tensor] = translate(state, model)
    except (AttributeError, KeyError, IndexError, TypeError, ValueError, RuntimeError):  # names of something else
        return state
    own = {tensor.untyped_storage().data_ptr() for tensor in state.values()}
    read = all(tensor.untyped_storage().data_ptr() in own for tensor in found.values())
    return found if read and set(found) == names else state


def _shape(tensor: Tensor) -> str:
    return "×".join(str(n) for n in tensor.shape) or "a number"


def _fitting_args(state: dict[str, Tensor], want: dict[str, Tensor]) -> str:
    """The --model-arg values that the file's own shapes suggest, where the model's shapes suggest others."""
    have, now = _suggested(state), _suggested(want)
    differing = [f"--model-arg {k}={_word(v)}" for k, v in have.items() if now.get(k) != v]
    return "the file's shapes suggest " + " ".join(differing) if differing else "name the model the file was saved from"


def _word(value: int | tuple[int, ...]) -> str:
    """As it is typed behind `--model-arg NAME=`; a tuple needs no quotes from the shell."""
    return str(value) if isinstance(value, int) else ",".join(str(n) for n in value)


def _suggested(state: dict[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
    """A plain ViT's or Swin's arguments, as far as shapes tell them."""
    guess: dict[str, int | tuple[int, ...]] = {}
    if (head := state.get("head.weight", state.get("head.fc.weight"))) is not None and head.ndim == 2:
        guess["num_classes"] = head.shape[0]
    if (token := state.get("cls_token")) is not None:
        guess["embed_dim"] = token.shape[-1]
    if (patch := state.get("patch_embed.proj.weight")) is not None and patch.ndim == 4:
        size = guess["patch_size"] = patch.shape[-1]
        if (position := state.get("pos_embed")) is not None and position.ndim == 3:
            n_side = math.isqrt(position.shape[1] - (token is not None))
            guess["img_size"] = n_side * size
    if blocks := {k.split(".")[1] for k in state if k.startswith("blocks.")}:
        guess["depth"] = len(blocks)
    return guess | _suggested_swin(state)


def _suggested_swin(state: dict[str, Tensor]) -> dict[str, int | tuple[int, ...]]:
    """Arguments that every block's table of position biases tells: one row for each of (2w − 1)² offsets, a column a head."""
    tables: dict[int, list[Tensor]] = {}
    for name, tensor in state.items():
        if match := re.fullmatch(r"layers\.(\d+)\.blocks\.\d+\.attn\.relative_position_bias_table", name):
            tables.setdefault(int(match[1]), []).append(tensor)
    patch = state.get("patch_embed.proj.weight")
    if not tables or patch is None:
        return {}
    stages = [tables[i] for i in sorted(tables)]
    return {
        "embed_dim": patch.shape[0],
        "depths": tuple(len(blocks) for blocks in stages),
        "num_heads": tuple(blocks[0].shape[1] for blocks in stages),
        "window_size": (math.isqrt(stages[0][0].shape[0]) + 1) // 2,
    }


def refuse_non_finite(model: nn.Module) -> None:
    """DataError naming the first weight that holds NaN or infinity."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise DataError(f"the weight {name} holds NaN or infinity", fix="a checkpoint of a model that works")
