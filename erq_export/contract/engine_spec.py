"""What is asked of an engine, beside the graph that it is built from."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from msgspec import Meta, structs

from erq_export.contract.errors import SpecError
from erq_export.contract.records import Spec, checked_value, hints
from erq_export.contract.registry import unknown
from erq_export.contract.spec import Capability, DeploySpec

Hardware = Literal["this", "capability", "ampere"]
BatchSize = Annotated[int, Meta(ge=1, le=2**20)]
BATCH_FIX = "three sizes in rising order: smallest, the one that it is tuned for, largest; for example --batch 1,8,32"


class EngineSpec(Spec, frozen=True, kw_only=True):
    """capability: ahead of time alone.  hardware, any_version: TensorRT alone, and both may cost speed."""

    batch: Annotated[
        tuple[BatchSize, BatchSize, BatchSize],
        Meta(description="batches that it takes: smallest, tuned for, largest", extra={"fix": BATCH_FIX}),
    ]
    capability: Annotated[
        tuple[Capability, ...],
        Meta(
            description="GPU compute capability to build for (repeatable)",
            extra={"fix": "for example 8.9; nvidia-smi --query-gpu=compute_cap --format=csv prints your GPU's"},
        ),
    ] = ()
    workspace: Annotated[
        Annotated[int, Meta(ge=1, le=2**24)] | None,
        Meta(
            description="MiB of GPU memory that a layer may use while it runs [default: the package's own limit]",
            extra={"fix": "MiB, at least 1; 1024 suffices for these models"},
        ),
    ] = None
    hardware: Annotated[
        Hardware,
        Meta(description="GPUs it runs on: this one, all of its compute capability, or all from Ampere on (tensorrt)"),
    ] = "this"
    any_version: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if list(self.batch) != sorted(self.batch):
            raise SpecError(f"--batch {','.join(map(str, self.batch))}: not in rising order", fix=BATCH_FIX)

    @classmethod
    def of(cls, deploy: DeploySpec) -> "EngineSpec":
        """What a run asks of its engines."""
        return cls(batch=deploy.batch, capability=deploy.capability)

    @classmethod
    def named(cls, asked: Mapping[str, Any]) -> "EngineSpec":
        """The spec of these fields; SpecError for a name that it does not have."""
        if surplus := [name for name in asked if name not in hints(cls)]:
            raise unknown("option of build", surplus[0], hints(cls))
        return cls(**asked)

    @classmethod
    def typed(cls, deploy: DeploySpec, words: Mapping[str, Any]) -> "EngineSpec":
        """What the words of a command line ask, the rest as the run asked. SpecError for one that cannot be."""
        given = {name: word for name, word in words.items() if word not in (None, ())}
        if "batch" in given:
            given["batch"] = batch_of(given["batch"])
        asked = {
            name: checked_value(word, hints(cls)[name], word=cls.word(name), text=True) for name, word in given.items()
        }
        return structs.replace(cls.of(deploy), **asked)


def batch_of(text: str) -> tuple[int, ...]:
    """ "1,8,32", or one size for all three. SpecError for anything else; what the sizes must keep is the record's."""
    sizes = [size.strip() for size in text[:100].split(",")]
    if len(sizes) not in (1, 3) or not all(size.isascii() and size.isdigit() and len(size) < 9 for size in sizes):
        raise SpecError(f"--batch {text[:60]!r}", fix=BATCH_FIX)
    numbers = tuple(map(int, sizes))
    return numbers * 3 if len(numbers) == 1 else numbers
