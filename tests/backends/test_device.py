"""`--device` is the CPU or a GPU that is there; every other word is refused with what was meant."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from malformed import value_or_error

from erq_export.backends.device import device_named
from erq_export.contract.errors import ErqError, MachineError, SpecError


def test_what_there_is_is_given() -> None:
    assert device_named("cpu") == torch.device("cpu")
    assert device_named("auto") == torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("count", [0, 1, 2])
def test_a_gpu_is_given_where_it_is_there_and_no_further(count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    for index, name in [(0, "cuda"), (0, "cuda:0"), (1, "cuda:1"), (2, "cuda:2"), (999, "cuda:999")]:
        if index < count:
            assert device_named(name) == torch.device(name)
        else:
            with pytest.raises(MachineError, match=f"--device {name}: this machine has") as caught:
                device_named(name)
            assert caught.value.exit_code == 3


KNOWN_TO_TORCH = ["meta", "mps", "xpu", "hpu", "ipu", "mkldnn", "opengl", "opencl", "ideep", "hip", "ve", "fpga", "maia",
                  "xla", "lazy", "vulkan", "mtia", "privateuseone"]  # fmt: skip
MISSPELT = ["CPU", "Cuda", "gpu", "cuda:", "cuda:-1", "cuda:1:2", "cuda:00", "cuda:0 ", " cpu", "cpu:0", "cpu\n", "",
            "cuda:１", "cuda:٣", "cuda:²", "cuda:1_0", "cuda:1000", "cuda:99999999999999999999", "auto:0", "x" * 10**6, "\0",
            "\udcff"]  # fmt: skip


@pytest.mark.parametrize(
    "name", [*KNOWN_TO_TORCH, *(f"{n}:0" for n in KNOWN_TO_TORCH), *MISSPELT], ids=lambda n: n[:12]
)
def test_every_other_word_is_refused(name: str) -> None:
    with pytest.raises(SpecError, match="unknown --device") as caught:
        device_named(name)
    assert "cpu" in caught.value.fix or "cuda" in caught.value.fix or "auto" in caught.value.fix
    assert len(str(caught.value)) < 500
    assert str(caught.value).encode()


@settings(max_examples=200)
@given(name=st.text(max_size=10) | st.from_regex(r"(cpu|cuda|meta|auto)(:.{0,4})?", fullmatch=True))
def test_any_word_names_a_device_or_is_refused(name: str) -> None:
    outcome = value_or_error(lambda: device_named(name))
    assert isinstance(outcome, ErqError) or outcome.type in ("cpu", "cuda")
