"""What a calibration says that it will hold, against what it holds."""

import pytest
from tiny_vit import N_IMAGES, tiny_vit

from erq_export.calibrate.budget import F32, F64, MIB, budget
from erq_export.calibrate.methods.method import options_of
from erq_export.contract.errors import MachineError


def test_the_parts_are_counted() -> None:
    """Tiny ViT: hidden state 16 patches + class token × 32, in and out; fc2 has 128 inputs and is the largest layer."""
    expected = budget(tiny_vit(), N_IMAGES, options_of("erq", {}))
    tokens, dim = 17, 32
    assert expected.hidden_mib == N_IMAGES * max(2 * tokens * dim, 3 * 16 * 16 + tokens * dim) * F32 / MIB
    assert expected.moments_mib == 2 * 3 * (129**2 + 3 * 33**2) * F64 / MIB
    assert expected.solver_mib == (3 * 129**2 + 2 * 129**2 + 5 * 128 * 32) * F64 / MIB


def test_more_images_cost_hidden_state_alone() -> None:
    few, many = (budget(tiny_vit(), n, options_of("erq", {})) for n in (10, 1000))
    assert many.hidden_mib == 100 * few.hidden_mib
    assert (many.model_mib, many.moments_mib, many.solver_mib) == (few.model_mib, few.moments_mib, few.solver_mib)
    assert "MiB" in many.says()


def test_every_further_state_is_as_large_as_the_float_one() -> None:
    one, two, three = (
        budget(tiny_vit(), N_IMAGES, options_of("erq", options)).hidden_mib
        for options in ({}, {"inputs": "quantized"}, {"inputs": "quantized", "input_ranges": "quantized"})
    )
    assert (two, three) == (2 * one, 3 * one)


def test_a_calibration_that_does_not_fit_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """From both sides; the model is loaded already and does not count again."""
    found = budget(tiny_vit(), N_IMAGES, options_of("erq", {}))
    needed = (found.hidden_mib + found.moments_mib + found.solver_mib) * MIB
    monkeypatch.setattr("erq_export.contract.memory.available_memory", lambda: needed)
    found.check()
    monkeypatch.setattr("erq_export.contract.memory.available_memory", lambda: needed - 1)
    with pytest.raises(MachineError, match="bytes are free") as caught:
        found.check()
    assert "--calib N" in caught.value.fix
