"""What both trainings of bundled weights share: AdamW, a rate that rises and falls, and a running mean of the weights."""

import math

import torch
from torch import nn
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR
from torch.optim.swa_utils import AveragedModel

PEAK_LR, WEIGHT_DECAY = 1e-3, 0.05
LARGEST_NORM = 1.0  # of all gradients together


class Training:
    """A model and its state between steps. warmup, total: steps;  ema_decay: of the running mean, `averaged`."""

    def __init__(self, model: nn.Module, *, warmup: int, total: int, ema_decay: float) -> None:
        matrices = [p for p in model.parameters() if p.ndim > 1]  # and embeddings
        vectors = [p for p in model.parameters() if p.ndim <= 1]  # biases and norms do not decay
        groups = [{"params": matrices, "weight_decay": WEIGHT_DECAY}, {"params": vectors, "weight_decay": 0.0}]

        def factor(step: int) -> float:
            if step < warmup:
                return (step + 1) / warmup
            return 0.5 + 0.5 * math.cos(math.pi * (step - warmup) / (total - warmup))

        self.model, self.optimizer = model.train(), AdamW(groups, lr=PEAK_LR)
        self.schedule = LambdaLR(self.optimizer, factor)
        self.averaged = AveragedModel(model, avg_fn=lambda mean, new, _: mean.lerp(new, 1 - ema_decay))

    def step(self, loss: torch.Tensor) -> float:
        """Go down the gradient of a loss (), and return it."""
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), LARGEST_NORM)
        self.optimizer.step()
        self.schedule.step()
        self.averaged.update_parameters(self.model)
        return loss.item()
