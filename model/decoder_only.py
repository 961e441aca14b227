"""The library's decoder-only transformer, for use without Forescale's training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from model import decoding
from model.arguments import (
    attention_mask,
    check_sequence,
    configuration,
    padding_mask,
    without_padding,
)
from model.config import FREQUENCY_SEES_ALL
from model.errors import UserError
from model.init import postponed
from model.layers import EncoderLayer
from model.stack import make_layers
from model.standalone import StandaloneStack


class DecoderOnlyTransformer(StandaloneStack):
    """A causal transformer without a memory, [B, T, input_size] -> [B, T, output_size].

    Each position sees itself and those before it. The arguments are those of
    `TransformerEncoder`. `forward_one_step` continues a sequence token by token.
    """

    def __init__(
        self,
        input_size: int,
        output_size: int,
        d_model: int = 512,
        nhead: int = 8,
        num_layers: int = 6,
        dim_feedforward: int = 2048,
        dropout: float = 0.1,
        activation: str | None = None,
        att_type: str = "standard",
        norm_strategy: str = "pre_norm",
        use_adaptive_ln: str | Callable[[int], nn.Module] = "layer",
        use_swiglu: bool = True,
        use_gradient_checkpointing: bool = False,
        share_layers: bool = False,
        use_final_norm: bool = True,
        use_moe: bool = False,
        num_experts: int = 8,
        top_k: int = 2,
        num_kv_heads: int | None = None,
        max_seq_len: int = 5000,
        freq_modes: int = 32,
        **options: Any,
    ) -> None:
        config = configuration(locals())
        if config.att_type_of_decoder == "frequency":
            raise UserError(f"att_type: {FREQUENCY_SEES_ALL}")
        with postponed():
            att_type = config.att_type_of_decoder
            layers = make_layers(
                config, num_layers, lambda: EncoderLayer(config, att_type, is_causal=True)
            )
            super().__init__(input_size, config, layers, use_gradient_checkpointing)
            self.output_projection = nn.Linear(d_model, output_size)
        self._initialise()

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
    ) -> Tensor:
        """Compute src [B, T, input_size] -> [B, T, output_size].

        Masks are those of `TransformerEncoder.forward`, and count beside the causal order. Raises
        UserError for another shape or meaning.
        """
        self._forget_auxiliary_loss()
        batch, length = check_sequence(src, "src", self.input_size, self.dtype)
        mask = attention_mask(mask, "mask", batch, self.config.nhead, length, length)
        padding = padding_mask(src_key_padding_mask, "src_key_padding_mask", batch, length)
        x = self.positions(self.input_projection(without_padding(src, padding)))
        for layer in self.layers:
            x = self._run(layer, x, padding, mask)
        return self.output_projection(self.final_norm(x))

    @torch.no_grad()
    def forward_one_step(
        self, src: Tensor, incremental_state: dict[str, Any] | None = None
    ) -> tuple[Tensor, dict[str, Any]]:
        """Compute the next token src [B, 1, input_size].

        Returns its output [B, 1, output_size] and the state for the next step; None or an empty
        dict starts. The output equals that of the same position in a full forward. No gradient is
        kept. Raises UserError for a state of another model or batch; a step that fails leaves the
        state as it was.
        """
        batch, length = check_sequence(src, "src", self.input_size, self.dtype)
        if length != 1:
            raise UserError(f"src: one step takes one token, [B, 1, input_size]; got {length}")
        state = {} if incremental_state is None else incremental_state
        decoding.check(state, len(self.layers), batch)
        start = decoding.length(state)
        with decoding.unchanged_on_error(state):
            x = self.positions(self.input_projection(src), start)
            for index, layer in enumerate(self.layers):
                cache = decoding.layer_caches(state, index, ["self_attn"])["self_attn"]
                x = layer(x, start=start, cache=cache)
            output = self.output_projection(self.final_norm(x))
        return output, state
