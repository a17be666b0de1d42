"""A classifier's reference, breaking its ties as the graph broke them: then both have the same outputs.

At every quantizer the reference computes its own codes, looks how far those of the graph are from a tie (`ties`), and goes on
with them. So what follows from a tie is the same on both sides, and the outputs are equal up to rounding, however much the model
amplifies a code.
"""

from pathlib import Path

import onnx_ir as ir
import torch
from torch import Tensor, nn

from erq_export.contract.followed import Followed
from erq_export.contract.manifest import GraphManifest
from erq_export.contract.targets import named

from ...metrics.distance import ROUNDING
from ..between import HALF_ROUNDING
from ..layers import as_fed
from .codes import Watched, follows
from .ledger import OTHER_OUTPUTS, Ledger


@torch.no_grad()
def follow_classifier(
    reference: nn.Module, path: Path, manifest: GraphManifest, pixels: Tensor, *, threads: int | None = None
) -> Followed:
    """reference: on the CPU;  pixels (B, 3, H, W).

    A float16 graph rounds more coarsely: a tie is then up to a few per cent of a step wide at 4 bits, half a step at 8, where
    this says little. DataError where file and manifest do not belong together. Memory: the codes of all layers for all images, a
    byte each.
    """
    model = ir.load(path)
    (image,), (last,) = model.graph.inputs, model.graph.outputs
    given, gives = str(image.name), str(last.name)
    rounding = HALF_ROUNDING if named(manifest.target).carrier == "float16" else ROUNDING
    watched, ledger, feeds = Watched(path, model, manifest, threads=threads), Ledger(), {given: as_fed(pixels, model)}
    values = watched(feeds)
    if not watched.runs_as_it_is(feeds, values):
        ledger.astray.append(OTHER_OUTPUTS)
    with follows(reference, watched.places, values, ledger, rounding=rounding):
        logits = reference(pixels)  # (B, n)
    size = logits.abs().max()
    ledger.gap("logits", logits / size, values[gives].float() / size, rounding)
    return ledger.followed(len(pixels))
