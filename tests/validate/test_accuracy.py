"""What held-out images say: shares with their intervals, the same images twice, outputs without a head, and the bounds."""

import math
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from erq_export.contract.accuracy import Accuracy
from erq_export.contract.errors import DataError
from erq_export.contract.spec import EvaluateSpec
from erq_export.data.held_out import Prepared
from erq_export.validate.gates import broken
from erq_export.validate.metrics import decisions as subject
from erq_export.validate.metrics.accuracy import accuracy
from erq_export.validate.metrics.decisions import Decisions, decide, evenly
from erq_export.validate.metrics.shares import paired, share


@dataclass
class Told:
    """A runner whose outputs are known: image i, which is i everywhere, gets row i."""

    outputs: Tensor
    name: str = "told"

    def logits(self, pixels: Tensor) -> Tensor:
        return self.outputs[pixels[:, 0, 0, 0].long()]


def images(n: int, labels: Tensor | None = None) -> Prepared:
    tensor = torch.arange(n, dtype=torch.float32)[:, None, None, None].expand(n, 3, 2, 2).contiguous()
    return Prepared(tensor=tensor, fingerprint="", labels=labels)


def decided(outputs: Tensor, labels: Tensor | None = None, **how: Any) -> Decisions:
    return decide(Told(outputs), images(len(outputs), labels), **how)


def test_wilsons_interval_is_that_of_the_textbook() -> None:
    """8 of 10: (p + z²/2n ± z √(p(1−p)/n + z²/4n²)) / (1 + z²/n), z = 1.959964"""
    found = share(torch.tensor([True] * 8 + [False] * 2))
    assert (found.value, found.low, found.high) == (
        80.0,
        pytest.approx(49.0162, abs=1e-3),
        pytest.approx(94.3318, abs=1e-3),
    )
    assert share(torch.ones(5, dtype=torch.bool)).high == pytest.approx(100)


def test_mcnemars_p_is_the_two_sided_binomial_tail() -> None:
    first = torch.tensor([True] * 9 + [False] * 1 + [True] * 50)
    second = torch.tensor([False] * 9 + [True] * 1 + [True] * 50)
    found = paired(first, second)
    assert (found.lost, found.gained) == (9, 1)
    assert found.p == pytest.approx(2 * (1 + 10) / 2**10)
    assert paired(first, first).p == 1.0


def test_top5_and_agreement_beside_the_float_model() -> None:
    g = torch.Generator().manual_seed(0)
    exact = torch.randn(200, 10, generator=g)
    labels = exact.argmax(1)
    worse = exact + torch.randn(200, 10, generator=g)
    found = accuracy(decided(exact, labels), decided(worse, labels), {"onnx": decided(worse, labels)})
    assert found.float_top1 is not None
    assert found.float_top1.value == 100
    right = 100 * float((worse.argmax(1) == labels).double().mean())
    assert found.reference.top1 is not None
    assert found.reference.agreement is not None
    assert found.reference.paired is not None
    assert found.reference.top1.value == found.reference.agreement.value == pytest.approx(right)
    assert found.reference.paired.lost == round(2 * (100 - right))
    assert found.as_reference["onnx"].value == 100
    assert found.reference.error == pytest.approx(float((worse - exact).norm() / exact.norm()), rel=1e-6)
    lost = [drop.float_right - drop.reference_right for drop in found.worst]
    assert lost == sorted(lost, reverse=True)
    assert sum(lost) == found.reference.paired.lost


def test_without_labels_classes_are_compared_and_nothing_is_called_right() -> None:
    exact = torch.eye(4)
    found = accuracy(decided(exact), decided(exact.roll(1, 0)), {})
    assert (found.float_top1, found.reference.top1, found.reference.paired, found.worst) == (None, None, None, ())
    assert found.reference.agreement is not None
    assert found.reference.agreement.value == 0


def test_without_a_head_features_are_compared_and_no_class_is_named() -> None:
    exact = torch.randn(6, 3, 4, generator=torch.Generator().manual_seed(0))  # (images, tokens, channels)
    found = accuracy(decided(exact, headless=True), decided(2 * exact, headless=True), {})
    assert (found.outputs, found.reference.agreement, found.as_reference) == ("features", None, {})
    assert found.reference.error == pytest.approx(1)
    assert found.reference.cosine == pytest.approx(1)


def test_outputs_of_many_images_are_kept_of_a_few_evenly_spread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "KEPT_BYTES", 4 * 7 * 10)
    outputs = torch.randn(100, 7)
    kept = decided(outputs).outputs
    assert torch.equal(kept, outputs[::10])
    assert evenly(3, 100) == [0, 1, 2]
    assert evenly(3, 0) == [0]


def test_a_label_beyond_the_models_classes_is_refused() -> None:
    with pytest.raises(DataError, match="class index 7"):
        decided(torch.randn(2, 3), torch.tensor([0, 7]))


def measured(outputs: Tensor, *, labelled: bool = True, headless: bool = False) -> Accuracy:
    exact = torch.eye(len(outputs))
    labels = torch.arange(len(outputs)) if labelled else None
    found = decided(outputs, labels, headless=headless)
    return accuracy(decided(exact, labels, headless=headless), found, {"onnx": found})


ROLLED = torch.eye(4).roll(1, 0)
NAN = torch.full((4, 4), math.nan)


@pytest.mark.parametrize(
    ("gate", "outputs", "says"),
    [
        ({"max_drop": 99.0}, ROLLED, "reference is 100.00 points below float, --max-drop allows 99.0"),
        ({"min_agreement": 1.0}, ROLLED, "--min-agreement asks for 1.0"),
        ({"max_logit_error": 1.0}, ROLLED, "--max-logit-error allows 1.0"),
        ({"max_logit_error": 1e6}, NAN, "not finite"),
    ],
)
def test_a_broken_bound_quotes_figure_and_bound_for_every_runner(
    gate: dict[str, float], outputs: Tensor, says: str
) -> None:
    found = broken(EvaluateSpec(**gate), measured(outputs))
    assert len(found) == 2
    assert says in found[0]
    assert found[1].startswith("onnx")


def test_no_bound_is_broken_by_equal_outputs_and_none_is_asked_for_by_default() -> None:
    gates = EvaluateSpec(max_drop=0.0, min_agreement=100.0, max_logit_error=0.0)
    assert broken(gates, measured(torch.eye(4))) == []
    assert broken(EvaluateSpec(), measured(NAN)) == []


def test_a_bound_on_what_was_not_measured_is_broken() -> None:
    assert "top-1 was not measured" in broken(EvaluateSpec(max_drop=5.0), measured(torch.eye(4), labelled=False))[0]
    headless = measured(torch.eye(4), labelled=False, headless=True)
    assert "classes were not measured" in broken(EvaluateSpec(min_agreement=5.0), headless)[0]
