"""How far every layer's output is off inside the finished quantized model, errors of the layers before it included."""

import torch
from torch import Tensor, nn

from erq_export.contract.simulated import layer_paths
from erq_export.data.held_out import Images


@torch.inference_mode()
def output_errors(quantized: nn.Module, exact: nn.Module, images: Images) -> dict[str, float]:
    """Σ‖ŷ − y‖²/Σ‖y‖² by layer: ŷ a layer's output in the quantized model, y in the float one, sums over all images.

    Layers are those that were calibrated, deployed or simulated. Both models are in evaluation mode on one device. Only the
    outputs of one batch are held at a time.
    """
    paths = layer_paths(quantized)
    device = next(exact.parameters()).device
    seen: tuple[dict[str, Tensor], dict[str, Tensor]] = ({}, {})
    handles = [
        model.get_submodule(path).register_forward_hook(lambda _m, _x, y, path=path, of=of: of.update({path: y}))
        for model, of in zip((quantized, exact), seen, strict=True)
        for path in paths
    ]
    sums = torch.zeros(2, len(paths), dtype=torch.float64)  # ‖ŷ − y‖², ‖y‖²
    try:
        for pixels in images.pixels():
            for model in (quantized, exact):
                model(pixels.to(device))
            for j, path in enumerate(paths):
                y_hat, y = seen[0][path], seen[1][path]
                sums[:, j] += torch.stack([(y_hat - y).square().sum(), y.square().sum()]).double().cpu()
    finally:
        for handle in handles:
            handle.remove()
    return dict(zip(paths, (sums[0] / sums[1]).tolist(), strict=True))
