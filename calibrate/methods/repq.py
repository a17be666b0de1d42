"""RepQ-ViT's share of ERQ: initialisation and LayerNorm reparameterisation, then round to nearest. What ERQ must improve on."""

from .rtn import RoundToNearest


class RepQ(RoundToNearest):
    """Round to nearest on the reparameterised model (docs/method.md, "Range search" and "LayerNorm fold"); no weight
    learns what its inputs lost."""

    name = "repq"
    reparameterize = True


METHOD = RepQ()
