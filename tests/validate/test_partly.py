"""Layers stand in the float model as in their bundle: together they are its reference, and one can come from another bundle."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_swin import SIZE, tiny_swin
from tiny_vit import calibrated_bundle, random_images, tiny_spec, tiny_vit
from torch import Tensor

from erq_export.calibrate.known_ranges import KnownRanges
from erq_export.calibrate.loop import calibrate
from erq_export.calibrate.maps import input_maps
from erq_export.calibrate.rotation import rotated
from erq_export.contract.bundle import Bundle
from erq_export.contract.unfolded import Map, What
from erq_export.data.held_out import Prepared
from erq_export.models.loading import Loaded
from erq_export.models.rebuild import reference_model
from erq_export.validate.metrics.depth import by_depth
from erq_export.validate.metrics.partly import Modules, Partly, Sums
from erq_export.validate.metrics.sensitivity import Chunks, swapped

CPU = torch.device("cpu")
CASES: dict[str, dict[str, Any]] = {
    "as it is": {},
    "rotated": {"rotate": "all"},
    "int8 attention": {"attention": "int8"},
    "quantized ranges": {"input_ranges": "quantized"},
    "round to nearest": {"method": "rtn"},
    "published": {"targets": ("reference",), "zero_points": "mean"},
    "mixed": {"bits": "w4a4,blocks.0.*=w8a8,layers.0.*=w8a8,head*=w3a6"},
}


class Ready:
    """A model, a bundle of it, and its layers in the float model."""

    def __init__(self, family: str, known: KnownRanges | None = None, **asked: Any) -> None:
        self.loaded: Loaded = tiny_vit() if family == "vit" else tiny_swin()
        self.data = random_images(size=16 if family == "vit" else SIZE)
        self.pixels = random_images(5, seed=7, size=16 if family == "vit" else SIZE).pixels
        fresh = tiny_vit() if family == "vit" else tiny_swin()
        self.bundle: Bundle = calibrated_bundle(fresh, self.data, tiny_spec(**{"bits": "w4a4"} | asked))
        model = rotated(self.loaded, self.bundle.rotated)
        self.float_model = Partly(model=model, stages=replace(self.loaded, model=model).stages)
        self.maps = self.maps_of(self.bundle, known or KnownRanges())

    def maps_of(self, bundle: Bundle, known: KnownRanges) -> dict[str, Map]:
        return input_maps(self.loaded, self.data, bundle.spec, bundle.rotated, device=CPU, known=known)

    def chunks(self, size: int = 32) -> Chunks:
        return Chunks(Prepared(tensor=self.pixels, fingerprint=""), size, CPU)

    def modules(self, what: What) -> dict[str, Any]:
        operands = {} if what == "weights" else self.float_model.operands(self.bundle)
        return self.float_model.layers(self.bundle, self.maps, what) | operands


def relative(got: Tensor, want: Tensor) -> float:
    return float((got - want).square().sum() / want.square().sum())


@pytest.mark.parametrize("family", ["vit", "swin"])
@pytest.mark.parametrize("case", CASES)
def test_all_layers_in_the_float_model_are_the_reference(family: str, case: str) -> None:
    """A rounding of the maps moves a code that lies on a border: far below the error itself, which a fold undone wrongly
    would multiply."""
    ready = Ready(family, **CASES[case])
    want = reference_model(ready.bundle)(ready.pixels)
    got = ready.float_model.run(ready.pixels, ready.modules("both"))[-1]
    exact = ready.float_model.run(ready.pixels, {})[-1]
    assert relative(exact, ready.loaded.model(ready.pixels)) < 1e-9
    assert relative(got, want) < 0.01 * relative(want, exact) + 1e-9


def test_maps_are_the_same_from_known_grids_and_from_a_search() -> None:
    ready, known = Ready("vit"), KnownRanges()
    calibrate(tiny_vit(), ready.data, ready.bundle.spec, device=CPU, progress=lambda *_: None, known=known)
    again = ready.maps_of(ready.bundle, known)
    assert (
        set(again)
        == set(ready.maps)
        == {f"blocks.{i}.{p}" for i in range(2) for p in ("attn.qkv", "attn.proj", "mlp.fc1")}
    )
    for path, found in again.items():
        assert torch.equal(found.scale, ready.maps[path].scale)
        assert torch.equal(found.shift, ready.maps[path].shift)


def test_a_map_is_what_the_fold_did_to_the_layernorm() -> None:
    ready = Ready("vit")
    norm, own = ready.loaded.model.get_submodule("blocks.1.norm2"), ready.maps["blocks.1.mlp.fc1"]
    gamma, beta = (ready.bundle.leftovers[f"blocks.1.norm2.{name}"] for name in ("weight", "bias"))
    assert torch.allclose(own.scale * norm.weight, gamma, rtol=1e-5, atol=1e-6)
    assert torch.allclose(own(norm.bias), beta, rtol=1e-5, atol=1e-5)
    x = torch.randn(3, len(gamma), generator=torch.Generator().manual_seed(0))
    assert torch.allclose(own.undo(own(x)), x, atol=1e-5)


@pytest.mark.parametrize("what", ["weights", "activations"])
def test_a_layer_with_one_side_quantized_is_the_formula(what: What) -> None:
    """fc2 folds nothing: Ŵ x + b̂, or W Q(x) + b."""
    ready, path = Ready("vit"), "blocks.1.mlp.fc2"
    module, layer = ready.modules(what)[path], ready.bundle.layers[path]
    linear = ready.loaded.model.get_submodule(path)
    x = torch.randn(7, linear.in_features, generator=torch.Generator().manual_seed(0))
    W, b = (layer.weight, layer.bias) if what == "weights" else (linear.weight, linear.bias)
    x_hat = x if what == "weights" else layer.act.fake_quantize(x)
    assert torch.allclose(module(x), x_hat @ W.T + b, atol=1e-5)


def test_depth_begins_at_the_image_ends_at_the_outputs_and_hangs_together() -> None:
    ready = Ready("vit")
    variants: Mapping[str, Modules] = {what: ready.modules(what) for what in ("weights", "activations", "both")}
    rows = by_depth(ready.float_model, variants, ready.chunks(2))
    assert [row.path for row in rows] == ["embed", "blocks.0", "blocks.1", "head"]
    assert [row.entering for row in rows] == [0.0, *(row.both for row in rows[:-1])]
    exact = ready.loaded.model(ready.pixels)
    for what, modules in variants.items():
        outputs = ready.float_model.run(ready.pixels, modules)[-1]
        assert getattr(rows[-1], what) == pytest.approx(relative(outputs, exact), rel=1e-3)
    nothing = by_depth(ready.float_model, {what: {} for what in variants}, ready.chunks())
    assert all(row.weights == row.activations == row.both == 0 for row in nothing)


def test_a_swapped_layer_is_the_model_with_that_layer_replaced() -> None:
    ready = Ready("vit", bits="w3a4")
    modules, raised = ready.modules("both"), Ready("vit", bits="w3a4,*=w8a8")
    eight = ready.float_model.layers(raised.bundle, raised.maps, "both")
    exact = ready.loaded.model(ready.pixels)
    for base in ({}, modules):
        as_is, found = swapped(
            ready.float_model, base, list(eight.items()), ready.chunks(), progress=lambda *_: None, what=""
        )
        assert as_is == pytest.approx(
            relative(ready.float_model.run(ready.pixels, base)[-1], exact), rel=1e-6, abs=1e-12
        )
        for (path, module), error in zip(eight.items(), found, strict=True):
            whole = ready.float_model.run(ready.pixels, {**base, path: module})[-1]
            assert error == pytest.approx(relative(whole, exact), rel=1e-5, abs=1e-12), path
    assert ready.float_model.model.get_submodule("head") is ready.float_model.model.head  # all are back in place
    assert isinstance(ready.float_model.model.get_submodule("blocks.0.mlp.fc1"), torch.nn.Linear)


@pytest.mark.parametrize("path", ["blocks.0.attn.qkv", "blocks.1.attn.proj", "blocks.0.mlp.fc1", "head"])
def test_what_a_swap_promises_is_what_the_mixed_run_is(path: str) -> None:
    """Whatever folds into what: the layer taken from the run with all at 8 bits gives the run with this layer at 8 bits."""
    ready, eight = Ready("vit", bits="w3a4"), Ready("vit", bits="w3a4,*=w8a8")
    promised = {**ready.modules("both"), path: eight.modules("both")[path]}
    got = ready.float_model.run(ready.pixels, promised)[-1]
    mixed = Ready("vit", bits=f"w3a4,{path}=w8a8")
    want, exact = reference_model(mixed.bundle)(ready.pixels), ready.loaded.model(ready.pixels)
    assert relative(got, want) < 0.02 * relative(want, exact)


@pytest.mark.parametrize(("n", "size"), [(5, 16), (33, 16), (64, 5), (70, 32)])
def test_chunks_are_the_images_in_order_and_as_many_as_they_say(n: int, size: int) -> None:
    pixels = torch.arange(n, dtype=torch.float32)[:, None, None, None]
    chunks = Chunks(Prepared(tensor=pixels, fingerprint=""), size, CPU)
    found = list(chunks)
    assert len(found) == len(chunks)
    assert torch.equal(torch.cat(found), pixels)


def test_sums_that_are_no_number_are_the_largest_error() -> None:
    sums = Sums()
    sums.add(torch.tensor([float("nan")]), torch.tensor([1.0]))
    assert sums.relative > 1e300
