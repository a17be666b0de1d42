"""What the comparison of one block found: the file's piece and the reference's own, both fed with the reference's input."""

from erq_export.contract.floor import TELLING, NoiseFloor, off
from erq_export.contract.records import Record


class BlockParity(Record, frozen=True, kw_only=True):
    """‖Δy‖/‖y‖ of a block's output on equal inputs, the block's own noise floor, and `factor` × its largest draw as limit.

    path: "blocks.3", or "blocks.3 … head" where the file has no value that ends the first;  sites: its LayerNorms, layers and
    operands of attention, in the order of the forward pass.
    """

    path: str
    sites: tuple[str, ...]
    relative_l2: float
    floor: NoiseFloor
    factor: float
    limit: float

    @property
    def telling(self) -> bool:
        """Does the limit tell a wrong block from a right one? Outputs of zero are off by 1."""
        return self.limit <= TELLING

    def problems(self) -> list[str]:
        if self.relative_l2 <= self.limit:
            return []
        return [
            f"{self.path}: same input, the block's output is {off(self.relative_l2)}; {self.limit:.1e} is allowed, "
            f"{self.factor:g} times what the block itself moves when its layers' inputs tremble by {self.floor.perturbation:.0e}"
        ]
