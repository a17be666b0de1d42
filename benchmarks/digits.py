"""The bundled model's digits, decoded once, with what the float model says of them."""

from __future__ import annotations

from functools import cached_property
from typing import Literal

import torch
from torch import Tensor, nn

from erq_export.contract.simulated import layer_paths
from erq_export.contract.spec import ModelSpec
from erq_export.data.batches import batches
from erq_export.data.digits import Digits
from erq_export.models.loading import load
from erq_export.validate.metrics.accuracy import BATCH
from erq_export.validate.metrics.distance import relative_l2
from erq_export.validate.runners import TorchRunner

DEMO = ModelSpec(name="demo")
CPU = torch.device("cpu")


class Judged:
    """One split of the digits; quantized models are measured against its labels and against the float model."""

    def __init__(self, split: Literal["train", "held_out"]) -> None:
        loaded, self.digits = load(DEMO, seed=0), Digits(split)
        self.preprocess, self.float_model = loaded.identity.preprocess, loaded.model
        self.labels = torch.tensor(self.digits.labels)
        self.names = [self.digits.name(i) for i in range(len(self.digits))]
        self.pixels = torch.cat(list(batches(self.digits, self.preprocess, range(len(self.digits)), BATCH)))

    def logits(self, model: nn.Module) -> Tensor:
        """(n, classes) of every image."""
        runner = TorchRunner(model, CPU)
        return torch.cat([runner.logits(chunk) for chunk in self.pixels.split(BATCH)])

    @cached_property
    def float_logits(self) -> Tensor:
        """(n, classes)."""
        return self.logits(self.float_model)

    def top1(self, logits: Tensor) -> float:
        """Share of images whose class is right, in per cent."""
        return 100 * float((logits.argmax(1) == self.labels).double().mean())

    def without(self, names: tuple[str, ...], n: int) -> list[int]:
        """n images that are not among `names`, evenly spread over the rest."""
        rest = [i for i, name in enumerate(self.names) if name not in names]
        return [rest[i * len(rest) // n] for i in range(n)]

    @torch.inference_mode()
    def inside(self, model: nn.Module, chosen: list[int]) -> dict[str, float]:
        """What quantization does to some images, within the network and at its end.

        deployed_error: Σ‖ŷ − y‖²/Σ‖y‖² of a layer's output y where it stands, all layers before it quantized too; mean
        over the layers. logits_error, agreement as in `figures`.
        """
        paths = layer_paths(model)
        outputs: dict[nn.Module, dict[str, Tensor]] = {self.float_model: {}, model: {}}
        handles = [
            of.get_submodule(path).register_forward_hook(lambda _m, _i, y, path=path, seen=seen: seen.update({path: y}))
            for of, seen in outputs.items()
            for path in paths
        ]
        logits: dict[nn.Module, list[Tensor]] = {of: [] for of in outputs}
        sums = torch.zeros(2, len(paths), dtype=torch.float64)
        for chunk in self.pixels[chosen].split(BATCH):
            for of in outputs:
                logits[of].append(of(chunk))
            for j, path in enumerate(paths):
                y, y_hat = (seen[path] for seen in outputs.values())
                sums[:, j] += torch.stack([(y_hat - y).square().sum(), y.square().sum()]).double()
        for handle in handles:
            handle.remove()
        exact, got = (torch.cat(parts) for parts in logits.values())
        return {"deployed_error": float((sums[0] / sums[1]).mean()), **figures(got, exact)}


def figures(logits: Tensor, exact: Tensor) -> dict[str, float]:
    """logits_error ‖quantized − float‖/‖float‖; agreement: the same decision as the float model's, in per cent."""
    same = (logits.argmax(1) == exact.argmax(1)).double().mean()
    return {"logits_error": relative_l2(logits, exact), "agreement": 100 * float(same)}
