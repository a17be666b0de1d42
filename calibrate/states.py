"""What the calibration set has become in front of a stage: in the float model, behind quantizers, and as deployed.

Letters:  x a site's input in the full-precision model;  x′ the same where it stands in the deployed one;  x̂ = Q(x) or Q(x′)
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor, nn

from erq_export.contract.formats.affine import Grid
from erq_export.contract.part import Part, install
from erq_export.contract.sites import Site, Stage
from erq_export.contract.state import State, n_images, named, unnamed

from .capture import unseen, walk
from .halves import HalvedMoments, first_half, heavy_tokens
from .methods.options import Options
from .wide import WideHalves

Chunks = Sequence[State]
Installed = Mapping[str, Part]


@dataclass(frozen=True, kw_only=True)
class States:
    """Hidden states in front of one stage, chunk by chunk; None where the run has no use for one.

    exact: of the (reparameterised) float model. ranged: every activation quantized, weights float (`-O input_ranges
    quantized`). deployed: every layer before it quantized (`-O inputs=quantized`).
    """

    exact: Chunks
    ranged: Chunks | None
    deployed: Chunks | None

    @classmethod
    def of(cls, pixels: Chunks, options: Options) -> "States":
        """At the input all are the images."""
        ranged, deployed = options.input_ranges == "quantized", options.deployed_inputs
        return cls(exact=pixels, ranged=pixels if ranged else None, deployed=pixels if deployed else None)

    @property
    def for_ranges(self) -> Chunks:
        """What input ranges are searched on."""
        return self.exact if self.ranged is None else self.ranged

    def tensors(self) -> dict[str, Tensor]:
        """Every chunk by a name of its own, so that they can be kept in a file."""
        kinds = {"exact": self.exact, "ranged": self.ranged, "deployed": self.deployed}
        every = (named(f"{kind}.{j:06d}", h) for kind, chunks in kinds.items() for j, h in enumerate(chunks or ()))
        return {name: t for one in every for name, t in one.items()}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, Tensor]) -> "States":
        """Inverse of `tensors`."""

        def chunks(kind: str) -> Chunks | None:
            own = sorted({name.partition("/")[0] for name in tensors if name.startswith(f"{kind}.")})
            return [unnamed(name, tensors) for name in own] or None

        return cls(exact=chunks("exact") or [], ranged=chunks("ranged"), deployed=chunks("deployed"))

    def past(
        self,
        model: nn.Module,
        stage: Stage,
        exact: Chunks,
        *,
        grids: Mapping[str, Grid],
        layers: Installed,
        operands: Installed,
    ) -> "States":
        """Behind the stage, which is still float and gave `exact`; `grids`, `layers` and `operands` are its own."""
        ranged = None
        if self.ranged is not None:
            with installed(model, operands):
                ranged = walk(model, stage, self.ranged, unseen, on_grid=grids)
        deployed = None
        if self.deployed is not None:
            with installed(model, {**layers, **operands}):
                deployed = walk(model, stage, self.deployed, unseen)
        return States(exact=exact, ranged=ranged, deployed=deployed)


@contextmanager
def installed(model: nn.Module, layers: Installed) -> Iterator[None]:
    """The model with `layers` (or operands) in place; the float modules return afterwards."""
    floats = {path: model.get_submodule(path) for path in layers}
    try:
        for path, layer in layers.items():
            install(model, path, layer)
        yield
    finally:
        for path, module in floats.items():
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, module)


def stage_moments(
    model: nn.Module, stage: Stage, hidden: Chunks, grids: Mapping[str, Grid], options: Options
) -> tuple[dict[str, HalvedMoments | WideHalves], list[State]]:
    """The moments of every site in one pass, x̂ = Q(x), and the stage's full-precision output: the next hidden state."""
    moments: dict[str, HalvedMoments | WideHalves] = {}
    wide = {site.path for site in stage.sites if site.role == "fc"}
    in_pieces = stage.varied or any(site.kernel is not None for site in stage.sites)

    def run(h: State, first: float) -> State:
        if in_pieces and first not in (0, 1):
            raise ValueError("a stage whose sites are seen in pieces takes its images one by one")

        def add(path: str, x: Tensor) -> None:
            if path not in moments:
                k = x.shape[1]
                moments[path] = WideHalves(k) if path in wide else HalvedMoments.zero(k, device=x.device)
            x_hat = grids[path].fake_quantize(x) if path in grids else x
            moments[path].add(x, x_hat, first, heavy_tokens(stage, h, options))

        (after,) = walk(model, stage, [h], add)
        return after

    return moments, [run(h, first) for h, first in zip(hidden, shares(hidden), strict=True)]


def shares(chunks: Chunks) -> list[float]:
    """The share of each chunk's images that belongs to the first half."""
    sizes = [n_images(h) for h in chunks]
    return [first / n for first, n in zip(first_half(sizes), sizes, strict=True)]


def deployed_moments(
    model: nn.Module,
    stage: Stage,
    site: Site,
    exact: Chunks,
    deployed: Chunks,
    grid: Grid | None,
    layers: Installed,
    options: Options,
) -> HalvedMoments:
    """The moments of one site with x̂ = Q(x′): x from the float stage, x′ behind the stage's finished `layers`.

    The objective Σ‖W x − Ŵ x̂‖² and its equations stay as they are; x − x̂ now holds what the layers before have done as
    well, and Aqer absorbs both. Two passes over the stage a site, one chunk of x and x′ at a time.
    """
    moments: HalvedMoments | None = None
    for h, h_deployed, first in zip(exact, deployed, shares(exact), strict=True):
        x = site_input(model, stage, site, h)
        with installed(model, layers):
            x_deployed = site_input(model, stage, site, h_deployed)
        moments = moments or HalvedMoments.zero(x.shape[1], device=x.device)
        x_hat = x_deployed if grid is None else grid.fake_quantize(x_deployed)
        moments.add(x, x_hat, first, heavy_tokens(stage, h, options))
    if moments is None:
        raise ValueError("there is no calibration image")
    return moments


def site_input(model: nn.Module, stage: Stage, site: Site, h: State) -> Tensor:
    """What the site is given when the stage runs on one chunk h: (rows, k)."""
    inputs: dict[str, Tensor] = {}
    walk(model, stage, [h], inputs.__setitem__)
    return inputs[site.path]
