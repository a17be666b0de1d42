"""RepQ-ViT's share of ERQ: initialisation and LayerNorm reparameterisation, then round to nearest. What ERQ must improve on."""

from .rtn import RoundToNearest


class RepQ(RoundToNearest):
    """Round to nearest on the reparameterised model (erq.md sections 2.2 and 5); no weight learns what its inputs lost."""

    name = "repq"
    reparameterize = True


METHOD = RepQ()
