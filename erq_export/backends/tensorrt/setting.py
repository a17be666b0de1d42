"""How a builder is set: workspace, compute capabilities, timing cache, and where else than here the engine may run."""

from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast

from erq_export.contract.engine_spec import EngineSpec, Hardware
from erq_export.contract.errors import SpecError

from .package import ahead_of_time, named, targets

if TYPE_CHECKING:
    import tensorrt as api

_LEVELS: dict[Hardware, str] = {"capability": "SAME_COMPUTE_CAPABILITY", "ampere": "AMPERE_PLUS"}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """compute_capabilities: the package's own values (`package.targets`).  workspace_mib: None leaves the package's own
    limit.  hardware, any_version: see `EngineSpec`.  timing_cache: of an earlier build, None for an empty one."""

    compute_capabilities: Sequence[Any] = ()
    workspace_mib: int | None = None
    hardware: Hardware = "this"
    any_version: bool = False
    timing_cache: bytes | None = None

    def check(self, trt: ModuleType) -> None:
        """SpecError for what the package has not: asked before any work."""
        asked = {f"--hardware {self.hardware}": self.hardware != "this", "--any-version": self.any_version}
        words = [word for word, wanted in asked.items() if wanted]
        if words and ahead_of_time(trt):
            raise SpecError(
                f"{words[0]}: {named(trt)} builds for the compute capabilities that are named, and for its own version",
                fix=f"--capability in the place of {words[0]}, or --to tensorrt",
            )
        if self.hardware != "this":
            levels = getattr(trt, "HardwareCompatibilityLevel", None)
            if not hasattr(levels, _LEVELS[self.hardware]):
                raise SpecError(f"--hardware {self.hardware}: {named(trt)} does not have it", fix="--hardware this")
        if self.any_version and not hasattr(trt.BuilderFlag, "VERSION_COMPATIBLE"):
            raise SpecError(f"--any-version: {named(trt)} does not have it", fix="leave --any-version out")

    def apply(self, trt: ModuleType, config: "api.IBuilderConfig") -> tuple[str, ...]:
        """Set the builder's config; returns what was set, as the engine's record names it."""
        said = []
        if self.workspace_mib is not None:
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, self.workspace_mib << 20)
        if self.compute_capabilities:
            ahead = cast(Any, config)  # the stubs are of a package without compute capabilities
            ahead.num_compute_capabilities = len(self.compute_capabilities)
            for index, target in enumerate(self.compute_capabilities):
                ahead.set_compute_capability(target, index)
        if self.hardware != "this":
            config.hardware_compatibility_level = getattr(trt.HardwareCompatibilityLevel, _LEVELS[self.hardware])
            said.append(f"hardware={self.hardware}")
        if self.any_version:
            config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
            said.append("any_version")
        if times_kernels(trt, config):
            cache = config.create_timing_cache(self.timing_cache or b"")
            if config.set_timing_cache(cache, ignore_mismatch=False):
                said.append("timing_cache")
        return tuple(said)


def check(trt: ModuleType, asked: EngineSpec) -> None:
    """SpecError for what is asked of an engine and the package has not."""
    targets(trt, asked.capability)
    Setting(hardware=asked.hardware, any_version=asked.any_version).check(trt)


def times_kernels(trt: ModuleType, config: "api.IBuilderConfig") -> bool:
    """Is there a timing cache that means something? Ahead of time nothing is timed: TensorRT-RTX keeps the functions, and
    calling them makes its build ask for a GPU."""
    return not ahead_of_time(trt) and hasattr(config, "create_timing_cache")


def timings(trt: ModuleType, config: "api.IBuilderConfig") -> bytes | None:
    """What the build has timed, for the next one; None where nothing was."""
    if not times_kernels(trt, config):
        return None
    cache = config.get_timing_cache()
    return None if cache is None else bytes(cache.serialize())
