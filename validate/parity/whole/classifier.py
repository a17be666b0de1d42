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
from ..layers import as_fed
from .codes import Watched, follows
from .ledger import Ledger

# float16 has 11 bits: scores of softmax in [32, 64) are off by up to 2⁻⁶, and two of them move a probability of ½ by 0.008.
HALF_ROUNDING = 0.02


@torch.no_grad()
def follow_classifier(
    reference: nn.Module, path: Path, manifest: GraphManifest, pixels: Tensor, *, threads: int | None = None
) -> Followed:
    """reference: on the CPU;  pixels (B, 3, H, W).

    A float16 graph rounds more coarsely: at 4 bits a tie is then up to 0.3 of a step wide; at 8 bits every neighbour is one, and
    only the outputs say something. DataError where file and manifest do not belong together. Memory: the codes of all layers for
    all images, a byte each.
    """
    model = ir.load(path)
    (image,), (last,) = model.graph.inputs, model.graph.outputs
    given, gives = str(image.name), str(last.name)
    rounding = HALF_ROUNDING if named(manifest.target).carrier == "float16" else ROUNDING
    watched, ledger, feeds = Watched(path, model, manifest, threads=threads), Ledger(), {given: as_fed(pixels, model)}
    values = watched(feeds)
    ledger.as_deployed = watched.runs_as_it_is(feeds, values)
    with follows(reference, watched.places, values, ledger, rounding=rounding):
        outputs = reference(pixels)  # (B, n): logits, or features of a model without a head
    size = outputs.abs().max().clamp(min=torch.finfo(outputs.dtype).tiny)
    ledger.gap("outputs", outputs / size, values[gives].float() / size, rounding)
    return ledger.followed(len(pixels))
