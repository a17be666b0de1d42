"""Who can be timed: each kind of runner with what it takes, where it computes, and how one is made.

A kind is a row of KINDS; what runs engines is made by `flow.engines`, which reads their records first.
"""

import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from erq_export.backends.onnxruntime import CPU, CUDA, TENSORRT, onnxruntime
from erq_export.contract.bench import Role
from erq_export.contract.errors import MachineError

from .openvino_runner import OpenVinoRunner
from .runners import OnnxRuntimeRunner, Runner, TorchRunner, compiled

Takes = Literal["graph", "module", "engine"]
Device = Literal["cpu", "cuda"]
CUDA_DEVICE = torch.device("cuda", 0)


@dataclass(frozen=True, kw_only=True)
class Subject:
    """Something that can be run: a graph, an engine, or a module that is built when it is asked for.

    n_outputs: several of a detector's body and box head;  runs_on: kinds of runner that it is meant for, all that take it
    where None.
    """

    name: str
    takes: Takes
    role: Role
    path: Path | None = None
    module: Callable[[], nn.Module] | None = None
    n_outputs: int = 1
    runs_on: tuple[str, ...] | None = None

    @property
    def bytes(self) -> int | None:
        """On disk, tensors beside the file included."""
        if self.path is None:
            return None
        return sum(path.stat().st_size for path in self.path.parent.glob(f"{self.path.name}*") if path.is_file())

    @property
    def file(self) -> Path:
        if self.path is None:
            raise ValueError(f"{self.name} is no file")
        return self.path

    def built(self) -> nn.Module:
        if self.module is None:
            raise ValueError(f"{self.name} is no module")
        return self.module()


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of runner. check: MachineError where this machine cannot have one;  fits: MachineError where it cannot run the
    subject;  make: (subject, threads, name);  always: taken unasked where the machine has it."""

    takes: Takes
    device: Device
    check: Callable[[], None]
    make: Callable[[Subject, int, str], Runner]
    always: bool = False
    fits: Callable[[Subject], None] = lambda _: None


@dataclass(frozen=True, kw_only=True)
class Entrant:
    """A subject and the kind of runner that runs it."""

    subject: Subject
    kind: str
    how: Kind

    @property
    def name(self) -> str:
        return f"{self.subject.name} in {self.kind}"


def _nothing() -> None:
    """Every machine has it."""


def check_gpu() -> None:
    """MachineError where torch has no GPU."""
    if not torch.cuda.is_available():
        raise MachineError("this machine has no GPU for torch", fix="a machine with one, or the runners of the CPU")


def _provider(name: str) -> None:
    if name not in (known := onnxruntime().get_available_providers()):
        raise MachineError(f"this onnxruntime has no {name}", fix=f"it has {', '.join(known)}")
    check_gpu()


def _openvino() -> None:
    if importlib.util.find_spec("openvino") is None:
        raise MachineError("openvino is not installed", fix="pip install 'erq-export[openvino]'")


KINDS: Mapping[str, Kind] = {
    "onnxruntime": Kind(
        takes="graph",
        device="cpu",
        check=_nothing,
        make=lambda s, threads, name: OnnxRuntimeRunner(
            s.file, threads=threads, providers=CPU, name=name, n_outputs=s.n_outputs
        ),
        always=True,
    ),
    "openvino": Kind(
        takes="graph",
        device="cpu",
        check=_openvino,
        make=lambda s, threads, name: OpenVinoRunner(s.file, threads=threads, name=name, n_outputs=s.n_outputs),
        always=True,
    ),
    "torch": Kind(
        takes="module",
        device="cpu",
        check=_nothing,
        make=lambda s, threads, name: TorchRunner(s.built(), torch.device("cpu"), name=name, threads=threads),
    ),
    "torch-compile": Kind(
        takes="module",
        device="cpu",
        check=_nothing,
        make=lambda s, threads, name: compiled(s.built(), torch.device("cpu"), name=name, threads=threads),
    ),
    "torch-cuda": Kind(
        takes="module",
        device="cuda",
        check=check_gpu,
        make=lambda s, _, name: TorchRunner(s.built(), CUDA_DEVICE, name=name),
        always=True,
    ),
    "torch-compile-cuda": Kind(
        takes="module",
        device="cuda",
        check=check_gpu,
        make=lambda s, _, name: compiled(s.built(), CUDA_DEVICE, name=name),
    ),
    "onnxruntime-cuda": Kind(
        takes="graph",
        device="cuda",
        check=lambda: _provider(CUDA[0]),
        make=lambda s, _, name: OnnxRuntimeRunner(s.file, providers=CUDA, name=name, n_outputs=s.n_outputs),
        always=True,
    ),
    "onnxruntime-tensorrt": Kind(
        takes="graph",
        device="cuda",
        check=lambda: _provider(TENSORRT[0]),
        make=lambda s, _, name: OnnxRuntimeRunner(s.file, providers=TENSORRT, name=name, n_outputs=s.n_outputs),
    ),
}


def is_here(name: str) -> bool:
    """Does this machine have that kind of runner?"""
    try:
        KINDS[name].check()
    except MachineError:
        return False
    return True


def takers(subject: Subject, asked: frozenset[str], kinds: Mapping[str, Kind] = KINDS) -> list[str]:
    """The kinds that run the subject: those taken always and those asked for."""
    known = [name for name, kind in kinds.items() if kind.takes == subject.takes]
    return [
        name
        for name in known
        if (kinds[name].always or name in asked) and (subject.runs_on is None or name in subject.runs_on)
    ]
