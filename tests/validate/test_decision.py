"""Decisions over many images: honest graphs pass whatever the floor is, wrong ones fail, and how sure that is is said."""

import pytest
import torch
from tiny_vit import calibrated_bundle, random_images, tiny_spec, tiny_vit
from torch import Tensor, nn

from erq_export.contract.decision_parity import LEAST_P
from erq_export.models.rebuild import reference_model
from erq_export.validate.parity.decision import check_decision, judged
from erq_export.validate.parity.floor import noisy, trembling

N = 512


def kept(n: int, of: float, *, seed: int) -> Tensor:
    return torch.rand(n, generator=torch.Generator().manual_seed(seed)) < of


@pytest.mark.parametrize("floor", [0.2, 0.6, 0.95])
def test_a_graph_that_keeps_as_much_as_the_trembling_reference_fails_once_in_a_thousand(floor: float) -> None:
    """1000 draws: at most 1 is expected, and the chance of more than 5 is below 1e-3."""
    failed = 0
    for seed in range(1000):
        graph, shaken = kept(64, floor, seed=2 * seed), kept(64, floor, seed=2 * seed + 1)
        failed += bool(judged(graph, shaken, perturbation=1e-6).problems())
    assert failed <= 5


@pytest.mark.parametrize("seed", range(20))
def test_a_graph_that_keeps_less_fails_and_the_report_says_with_how_many_images(seed: int) -> None:
    shaken = kept(N, 0.6, seed=seed)
    found = judged(kept(N, 0.4, seed=100 + seed), shaken, perturbation=1e-6)
    (problem,) = found.problems()
    assert f"on {N} images the graph keeps the reference's class on {found.graph.value:.1f} %" in problem
    assert found.trembling.low <= found.trembling.value <= found.trembling.high
    assert judged(shaken, shaken, perturbation=1e-6).problems() == []
    assert judged(kept(N, 0.8, seed=100 + seed), shaken, perturbation=1e-6).problems() == []  # better is no fault


@pytest.mark.parametrize(("lost", "fails"), [(9, False), (10, True)])
def test_the_bound_is_that_of_an_exact_one_sided_test(lost: int, fails: bool) -> None:
    """2⁻⁹ > 1e-3 > 2⁻¹⁰."""
    shaken, graph = torch.ones(N, dtype=torch.bool), torch.ones(N, dtype=torch.bool)
    graph[:lost] = False
    found = judged(graph, shaken, perturbation=1e-6)
    assert found.p == pytest.approx(0.5**lost)
    assert bool(found.problems()) == fails == (found.p < LEAST_P)


class Trembling:
    """A graph that is the reference with rounding of its own."""

    name, device = "trembling", torch.device("cpu")

    def __init__(self, reference: nn.Module, e: float) -> None:
        self.reference, self.e, self.generator = reference, e, torch.Generator().manual_seed(7)

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        with trembling(self.reference, self.e, self.generator):
            return self.reference(noisy(pixels, self.e, self.generator))


class Another(Trembling):
    """A graph of another model."""

    @torch.no_grad()
    def logits(self, pixels: Tensor) -> Tensor:
        return self.reference(pixels.flip(1)).roll(1, dims=1)


def test_the_graph_of_a_model_that_amplifies_is_judged_by_what_its_reference_keeps() -> None:
    """At e = 1 the tiny model keeps a part of its classes only: the limits of the whole model would say nothing."""
    bundle = calibrated_bundle(tiny_vit(), random_images(), tiny_spec("w4a4"))
    reference, batches = reference_model(bundle), random_images(128, seed=3).pixels.split(32)
    honest = check_decision(reference, Trembling(reference, 1.0), batches, perturbation=1.0)  # type: ignore[arg-type]
    wrong = check_decision(reference, Another(reference, 1.0), batches, perturbation=1.0)  # type: ignore[arg-type]
    assert honest.n_images == wrong.n_images == 128
    assert 20 < honest.trembling.value < 100
    assert honest.problems() == []
    assert len(wrong.problems()) == 1
