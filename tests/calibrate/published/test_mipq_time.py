"""The number of programs that is said before the start is the number that is solved, and a limit is kept."""

import time
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from layer_rows import layer_rows, row_grid
from tiny_vit import TINY_LAYERS, tiny_vit
from torch import Tensor

from erq_export.calibrate.published import mipq as module
from erq_export.calibrate.published.mipq import mipq
from erq_export.calibrate.published.mipq_time import MipqEstimate, duration, mipq_estimate, weight_shapes
from erq_export.calibrate.solve.ridge import Ridge
from erq_export.calibrate.solve.wqer import quantize_columns
from erq_export.contract.errors import MachineError, SpecError


@settings(max_examples=15)
@given(k=st.integers(2, 14), n=st.integers(1, 4), columns=st.integers(1, 6))
def test_the_programs_foretold_are_those_solved(k: int, n: int, columns: int) -> None:
    rows, solved = layer_rows(k=k, n=n), []
    moments, grid = rows.moments, row_grid(rows.W[:, :-1], 3)

    def counted(program: Any, start: Any, solver: Any) -> module.Answer:
        solved.append(program)
        return module.Answer(bits=start, objective=program.objective(start), status="start kept")

    def refine(W: Tensor, grid: Any, M: Tensor, limit: int) -> Tensor:
        return mipq(W, grid, M, limit, columns=columns, seconds=1.0)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "solve", counted)
        quantize_columns(rows.W, moments.G, moments.n_rows, grid, Ridge(moments.G, 10.0), k=k, refine=refine, limit=0)
    assert len(solved) == mipq_estimate([rows.W.shape], columns=columns, seconds=1.0).n_programs  # type: ignore[list-item]


def test_layers_add_up_and_the_bound_is_programs_times_seconds() -> None:
    one, two = (mipq_estimate([(4, 9)] * n, columns=5, seconds=10.0) for n in (1, 2))
    assert (one.n_programs, two.n_programs) == (4 * 4, 2 * 4 * 4)  # halves of 4, 2, 1 and 1 columns
    assert two.most_s == 2 * one.most_s > 32 * 10.0


def test_every_quantized_layer_is_counted_with_its_bias() -> None:
    shapes = weight_shapes(tiny_vit())
    assert len(shapes) == len(TINY_LAYERS)
    assert shapes[0] == (32, 3 * 16 + 1)
    assert shapes[-1] == (5, 33)


def test_a_limit_below_the_bound_is_refused_before_the_start_and_says_what_to_type() -> None:
    estimate = MipqEstimate(n_programs=1000, seconds_each=9.8)
    estimate.check(10_000.0, option="--mipq-limit")
    with pytest.raises(SpecError, match=r"1,000 programs of at most 9\.8 s: up to 2\.8 h.*limit is 17 min") as caught:
        estimate.check(1000.0, option="--mipq-limit")
    assert "--mipq-limit 10000 " in caught.value.fix


def test_a_deadline_ends_the_work_between_two_programs() -> None:
    rows = layer_rows(k=8, n=4)
    W, grid, M = rows.W[:, :8], row_grid(rows.W[:, :8], 3), rows.X_hat[:, :8].T @ rows.X_hat[:, :8]
    args: dict[str, Any] = {"columns": 4, "seconds": 5.0}
    far = mipq(W, grid, M, 0, **args, deadline=time.monotonic() + 600)
    assert torch.equal(far, mipq(W, grid, M, 0, **args))
    with pytest.raises(MachineError, match="row 0 of 4, column 0 of 8") as caught:
        mipq(W, grid, M, 0, **args, deadline=time.monotonic() - 1)
    assert "--rounding flip" in caught.value.fix


def test_durations_are_read_by_people() -> None:
    assert [duration(s) for s in (4, 600, 9000, 1e7)] == ["4 s", "10 min", "2.5 h", "116 days"]
