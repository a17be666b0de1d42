"""Train the weights that ship as `demo`: python benchmarks/train_demo.py [--out FILE] [--epochs N] [--seed S]."""

import math
import time

import sheet
import timm
import torch
from safetensors.torch import save
from timm.data.transforms_factory import create_transform
from torch import Tensor, nn
from torch.nn.functional import affine_grid, cross_entropy, grid_sample
from training import Training

from erq_export.contract.errors import SpecError
from erq_export.contract.spec import ModelSpec
from erq_export.data.digits import Digits
from erq_export.data.held_out import HeldOut
from erq_export.models.demo import DEMO_ARCHITECTURE, DEMO_MODEL_ARGS, DEMO_PREPROCESS, DEMO_WEIGHTS
from erq_export.models.loading import load as load_model
from erq_export.validate.metrics.decisions import decide
from erq_export.validate.runners import TorchRunner

BATCH = 50  # divides the 1200 training images: 24 steps an epoch
WARMUP_EPOCHS, LABEL_SMOOTHING = 5, 0.1
EMA_DECAY = 0.995  # a mean over about the last 200 steps, 8 epochs
ROTATION, SHEAR, ZOOM = math.radians(12), 0.15, 0.15
SHIFT = 0.15  # of half the image's width: 2.4 of 32 pixels
NOISE = 0.05  # standard deviation; black is -1, white 1


def load(split: Digits) -> tuple[Tensor, Tensor]:
    """Return the images as the deployed model sees them (n, 3, 32, 32), and the labels (n,)."""
    transform = create_transform(**DEMO_PREPROCESS, is_training=False)
    images = torch.stack([transform(split.image(i)) for i in range(len(split))])
    return images, torch.tensor(split.labels)


def uniform(n: int, bound: float, generator: torch.Generator) -> Tensor:
    """Return n numbers between -bound and bound (n,)."""
    return (torch.rand(n, generator=generator) * 2 - 1) * bound


def distort(images: Tensor, generator: torch.Generator) -> Tensor:
    """Rotate, shear, zoom and shift each image at random over a black ground, then add noise (n, 3, 32, 32)."""
    n = len(images)
    angle, shear = uniform(n, ROTATION, generator), uniform(n, SHEAR, generator)
    zoom_x, zoom_y = 1 + uniform(n, ZOOM, generator), 1 + uniform(n, ZOOM, generator)
    shift_x, shift_y = uniform(n, SHIFT, generator), uniform(n, SHIFT, generator)
    cos, sin = angle.cos(), angle.sin()
    across = torch.stack([zoom_x * cos, zoom_x * (shear * cos - sin), shift_x], dim=1)  # (n, 3)
    down = torch.stack([zoom_y * sin, zoom_y * (shear * sin + cos), shift_y], dim=1)  # (n, 3)
    grid = affine_grid(torch.stack([across, down], dim=1), list(images.shape), align_corners=False)  # (n, 32, 32, 2)
    moved = grid_sample(images + 1, grid, align_corners=False) - 1  # outside is 0 + -1: black
    return moved + NOISE * torch.randn(n, 1, *images.shape[2:], generator=generator)


def create(seed: int) -> nn.Module:
    """Return the untrained model; timm draws initial weights from torch's global generator, seeded for this alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model: nn.Module = timm.create_model(DEMO_ARCHITECTURE, pretrained=False, **DEMO_MODEL_ARGS)
    return model


def train(model: nn.Module, images: Tensor, labels: Tensor, epochs: int, seed: int) -> nn.Module:
    """Train for a fixed number of epochs, seeing no other data; return the running mean of the weights."""
    generator = torch.Generator().manual_seed(seed)
    steps_per_epoch = len(images) // BATCH
    warmup, total = WARMUP_EPOCHS * steps_per_epoch, epochs * steps_per_epoch
    training = Training(model, warmup=warmup, total=total, ema_decay=EMA_DECAY)
    for epoch in range(epochs):
        start, losses = time.perf_counter(), []
        for rows in torch.randperm(len(images), generator=generator).chunk(steps_per_epoch):
            logits = model(distort(images[rows], generator))  # (BATCH, 10)
            loss = cross_entropy(logits, labels[rows], label_smoothing=LABEL_SMOOTHING)
            losses.append(training.step(loss))
        seconds = time.perf_counter() - start
        print(f"epoch {epoch + 1:3d} of {epochs}  loss {sum(losses) / len(losses):.4f}  {seconds:.1f} s", flush=True)
    return training.averaged.module


def main() -> None:
    args = sheet.words(__doc__, {"out": DEMO_WEIGHTS, "epochs": 100, "seed": 0})
    if args.epochs <= WARMUP_EPOCHS:
        raise SpecError(f"--epochs {args.epochs}", fix=f"more than {WARMUP_EPOCHS}: the warm-up alone takes them")
    train_images, train_labels = load(Digits("train"))
    trained = train(create(args.seed), train_images, train_labels, args.epochs, args.seed)
    args.out.write_bytes(save({key: tensor.half().contiguous() for key, tensor in trained.state_dict().items()}))
    shipped = load_model(ModelSpec(name="demo", checkpoint=str(args.out)), seed=0)  # float16 into float32: exact
    for split in ("held_out", "train"):
        images = HeldOut(source=Digits(split), preprocess=shipped.identity.preprocess)
        print(f"{split} top-1 {decide(TorchRunner(shipped.model, torch.device('cpu')), images).top1():.2f} %")


if __name__ == "__main__":
    sheet.start(main, threads=1)
