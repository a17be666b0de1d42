"""Reparameterisation: the pair's function stays, and one grid for the tensor gives the codes of one grid a channel."""

import pytest
import torch
import torch.nn.functional as F
from norm_pair import Pair, pair

from erq_export.calibrate.reparam import fold
from erq_export.contract.formats.affine import Grid, asymmetric_grid
from erq_export.contract.targets import GridRules, grid_rules

CPU, BOTH = grid_rules(["onnx"]), grid_rules(["onnx", "tensorrt-rtx"])
CASES = [(3, CPU), (4, CPU), (4, BOTH), (8, CPU), (8, BOTH)]
IDS = ["a3", "a4", "a4 both", "a8", "a8 both (zero point 128)"]
EPS = 2.0**-24


@pytest.mark.parametrize(("bits", "rules"), CASES, ids=IDS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_the_float_function_stays(bits: int, rules: GridRules, bias: bool) -> None:
    """In float32, as deployed: 48 products of size ~1 and a bias of size ~z̃, each rounded once: 1e-5 of the largest."""
    p = pair(bias=bias)
    f = p.fold(bits, rules)
    shape = p.gamma.shape
    before = F.linear(F.layer_norm(p.x, shape, p.gamma, p.beta), p.weight, p.bias)
    after = F.linear(F.layer_norm(p.x, shape, f.gamma, f.beta), f.weight, f.bias)
    assert float((after - before).abs().max()) < 1e-5 * float(before.abs().max())
    assert not torch.allclose(f.gamma, p.gamma, rtol=0.1)  # it did move
    assert {t.dtype for t in (f.gamma, f.beta, f.weight, f.bias)} == {torch.float32}


@pytest.mark.parametrize(("bits", "rules"), CASES, ids=IDS)
def test_codes_are_those_of_one_grid_a_channel(bits: int, rules: GridRules) -> None:
    """x'/s̃ = x/s + z − z̃ with an integer z̃: equal codes, except where x/s lies on a half step to within rounding.

    γ', β' are float32: x' is off by eps (|γ'| |x̄| + |β'|), where |x̄| < 5 is the normalised input; in steps s̃ that
    moves a tie by less than `reach`. Outside of it every code must agree; inside, by at most one.
    """
    p = pair()
    per_channel, f = p.per_channel(bits), p.fold(bits, rules)
    before = per_channel.quantize(p.normed()) - per_channel.qmin  # (rows, k) codes 0 … 2^b − 1
    after = f.grid.quantize(p.normed(f)) - f.grid.qmin
    steps = p.normed() / per_channel.scale
    from_tie = (steps - torch.floor(steps) - 0.5).abs()
    reach = 2 * EPS * (5 * f.gamma.abs() + f.beta.abs()) / f.grid.scale  # (k,)
    assert bool((from_tie[before != after] <= reach.expand_as(steps)[before != after]).all())
    assert float((before - after).abs().max()) <= 1
    assert float(reach.max()) < 1e-3  # so at most one code in a thousand is excused
    assert before.unique().tolist() == list(range(2**bits))  # and all codes are in use


@pytest.mark.parametrize(("bits", "rules"), CASES, ids=IDS)
def test_exact_arithmetic_has_no_exceptions(bits: int, rules: GridRules) -> None:
    """Scales that are powers of two with a power of two as their mean: nothing rounds, so no code may differ."""
    generator = torch.Generator().manual_seed(1)
    gamma, beta = torch.tensor([1.0, 2.0, 0.5, 0.5]), torch.tensor([0.0, 4.0, -1.0, 0.25])
    scale = torch.tensor([0.5, 0.25, 0.125, 0.125])  # mean 1/4
    qmin = torch.tensor([-3.0, 1.0, -8.0, -2.0])
    per_channel = Grid(scale=scale, qmin=qmin, qmax=qmin + 2**bits - 1)
    weight = torch.randint(-8, 9, (3, 4), generator=generator) / 8
    f = fold(gamma, beta, weight, torch.zeros(3), per_channel, bits=bits, rules=rules)
    assert float(f.grid.scale) == 0.25
    normalised = torch.randint(-640, 641, (2000, 4), generator=generator) / 64  # with plenty of half steps
    x, folded_x = normalised * gamma + beta, normalised * f.gamma + f.beta
    assert bool((x / scale - torch.floor(x / scale) == 0.5).any())
    shifted = f.grid.quantize(folded_x) - f.grid.qmin
    if float(f.grid.qmin) % 2 == 0 and bool((qmin % 2 == 0).all()):
        assert torch.equal(per_channel.quantize(x) - qmin, shifted)
    tie = (x / scale - torch.floor(x / scale)) == 0.5  # half to even sees another parity after an odd shift
    assert torch.equal((per_channel.quantize(x) - qmin)[~tie], shifted[~tie])
    assert torch.equal(F.linear(x, weight), F.linear(folded_x, f.weight, f.bias))


@pytest.mark.parametrize(("bits", "rules"), CASES, ids=IDS)
def test_the_one_grid_is_legal(bits: int, rules: GridRules) -> None:
    grid = pair().fold(bits, rules).grid
    zero_point = -float(grid.qmin)
    assert zero_point == round(zero_point)
    assert 0 <= zero_point <= 2**bits - 1
    assert float(grid.qmax - grid.qmin) == 2**bits - 1
    if rules is BOTH:
        assert torch.equal(grid.scale.half().float(), grid.scale)
    if rules is BOTH and bits == 8:
        assert (float(grid.qmin), float(grid.qmax)) == (-128, 127)


def test_far_offsets_leave_the_zero_point_in_its_range() -> None:
    """Channels that all sit far above 0 have zero points far below 0: their mean does not fit any container."""
    p = pair()
    far = Pair(x=p.x, gamma=p.gamma, beta=p.beta + 1000, weight=p.weight, bias=p.bias)
    f = far.fold(4, CPU)
    assert float(f.grid.qmin) == 0
    per_channel = far.per_channel(4)
    codes = per_channel.quantize(far.normed()) - per_channel.qmin
    same = codes == f.grid.quantize(far.normed(f)) - f.grid.qmin
    assert float(same.double().mean()) > 0.99  # β' carries 1000/s steps: ties are 1000 times as wide as above


@pytest.mark.parametrize(("bits", "rules"), CASES, ids=IDS)
def test_folding_lowers_the_error_of_the_layer(bits: int, rules: GridRules) -> None:
    """The purpose: against one grid for the unfolded tensor, the Linear's output error is less than half."""
    p = pair(bias=False)
    f = p.fold(bits, rules, clipped=0)  # both grids reach the extremes
    exact = p.normed() @ p.weight.double().T
    x, x_folded = p.normed(), p.normed(f)
    unfolded = asymmetric_grid(x.min().float(), x.max().float(), bits).fake_quantize(x) @ p.weight.double().T
    folded = f.grid.fake_quantize(x_folded) @ f.weight.double().T + f.bias.double()
    before, after = (float((y - exact).square().sum()) for y in (unfolded, folded))
    assert after < 0.5 * before
