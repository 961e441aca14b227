"""Our stacks as others' are called: with vectors [B, T, D], without projections."""

from __future__ import annotations

from torch import Tensor

from model.decoder_only import DecoderOnlyTransformer
from model.transformer import TransformerEncoder


class OurEncoder(TransformerEncoder):
    """The layers and the final norm of an encoder that sees all positions."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self.layers:
            x = self._run(layer, x, None, None, False)
        return self.final_norm(x)


class OurDecoder(DecoderOnlyTransformer):
    """The layers and the final norm of a causal stack."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        for layer in self.layers:
            x = self._run(layer, x, None, None)
        return self.final_norm(x)
