"""Swin-T at full size, from trace to engine: what tests/support/full_size.py checks, for one family."""

import pytest
from full_size import (
    ATTENTION,
    BITS,
    FullSize,
    check_batches,
    check_golden,
    check_layers,
    check_plan,
    check_twin,
    needs_rtx,
)

pytestmark = pytest.mark.slow

N_LAYERS = {"swin_t": 53}  # 12 blocks of 4, patches, three mergings, head
N_BLOCKS = 12


@pytest.fixture(scope="module", params=N_LAYERS)
def model(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> FullSize:
    return FullSize(request.param, tmp_path_factory.mktemp("full_size"))


@pytest.mark.parametrize("bits", BITS)
def test_onnx_runtime_computes_the_reference_in_integers(model: FullSize, bits: str) -> None:
    check_layers(model, bits, "onnx", n_layers=N_LAYERS[model.name], n_attentions=N_BLOCKS)


def test_the_float16_graph_computes_the_reference(model: FullSize) -> None:
    check_layers(model, "w4a4", "tensorrt-rtx", n_layers=N_LAYERS[model.name], n_attentions=N_BLOCKS)


@pytest.mark.parametrize(("bits", "target"), [*((bits, "onnx") for bits in BITS), ("w4a4", "tensorrt-rtx")])
def test_an_images_logits_do_not_depend_on_its_batch(model: FullSize, bits: str, target: str) -> None:
    check_batches(model, bits, target)


@needs_rtx
@pytest.mark.parametrize("attention", ATTENTION)
def test_the_plan_keeps_the_claims(model: FullSize, attention: str) -> None:
    check_plan(model, attention, n_layers=N_LAYERS[model.name], n_attentions=N_BLOCKS)


@needs_rtx
@pytest.mark.parametrize("attention", ATTENTION)
def test_the_plan_is_the_one_that_was_read(model: FullSize, attention: str) -> None:
    check_golden(model, attention)


@needs_rtx
def test_the_float16_twin_multiplies_no_integers(model: FullSize) -> None:
    check_twin(model, n_layers=N_LAYERS[model.name], n_attentions=N_BLOCKS)
