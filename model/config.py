"""Settings of the network. Imports no torch, so that a configuration is checked in milliseconds."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]


class TransformerConfig(BaseModel):
    """What every transformer layer is made of; the arguments of the library's classes."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )

    d_model: PositiveInt = 512
    """Width of the residual stream."""
    nhead: PositiveInt = 8
    """Attention heads; must divide d_model."""
    num_kv_heads: PositiveInt | None = None
    """Key/value heads for grouped-query attention; must divide nhead. Default: nhead."""
    num_layers: PositiveInt = 6
    """Layers of the encoder, and of the decoder unless num_decoder_layers says otherwise."""
    dim_feedforward: PositiveInt = 2048
    """Hidden width of the plain MLP. SwiGLU takes 2/3 of it, rounded up to a multiple of 64, so
    that both have about as many parameters."""
    dropout: Probability = 0.1
    """Dropout on each sub-layer's output, before it is added to the residual stream."""
    activation: Literal["gelu", "relu", "swish"] | None = None
    """Of the plain MLP (default gelu). With SwiGLU only swish."""
    norm_strategy: Literal["pre_norm", "post_norm"] = "pre_norm"
    """x + f(norm(x)) or norm(x + f(x))."""
    use_adaptive_ln: Literal["layer", "rms"] = "layer"
    """Kind of norm: LayerNorm or RMSNorm."""
    use_swiglu: bool = True
    """Gated feed-forward (Shazeer 2020, "GLU Variants Improve Transformer")."""
    use_final_norm: bool = True
    """A norm after the last layer."""
    use_moe: bool = False
    """Replace each feed-forward by a mixture of experts."""
    num_experts: PositiveInt = 8
    """Experts per mixture-of-experts layer."""
    top_k: PositiveInt = 2
    """Experts that each token is sent to."""
    balance_loss: Annotated[float, Field(ge=0.0)] = 0.01
    """Weight of the router's load-balancing loss (per layer and per sample)."""

    @model_validator(mode="after")
    def _consistent(self) -> TransformerConfig:
        if self.d_model % self.nhead:
            raise ValueError(f"nhead: {self.nhead} heads do not divide d_model={self.d_model}")
        if self.nhead % self.kv_heads:
            raise ValueError(f"num_kv_heads: {self.kv_heads} does not divide nhead={self.nhead}")
        if self.use_swiglu and self.activation not in (None, "swish"):
            raise ValueError(
                f"activation: {self.activation} needs use_swiglu: false (SwiGLU's gate is swish)"
            )
        if self.use_moe and self.top_k > self.num_experts:
            raise ValueError(f"top_k: {self.top_k} exceeds num_experts={self.num_experts}")
        return self

    @property
    def kv_heads(self) -> int:
        return self.num_kv_heads or self.nhead

    @property
    def head_dim(self) -> int:
        return self.d_model // self.nhead

    @property
    def feedforward_width(self) -> int:
        """Hidden width after SwiGLU's correction."""
        if not self.use_swiglu:
            return self.dim_feedforward
        return -(-2 * self.dim_feedforward // (3 * 64)) * 64


class ModelConfig(TransformerConfig):
    """The section `model`: what is trained."""

    architecture: Literal["encoder_decoder"] = "encoder_decoder"
    """The encoder reads the context's patches; the decoder answers for the future's."""
    num_decoder_layers: PositiveInt | None = None
    """Layers of the decoder. Default: num_layers."""
    patch_length: PositiveInt = 16
    """Points per patch, that is, per token."""
    channels: Literal["independent", "mixed"] = "independent"
    """Forecast each channel of a series by itself with the same weights, or put all channels of
    a moment into one token."""
    channel_embedding: bool = False
    """Add a learned vector per channel, so that the same weights can tell channels apart; only
    with channels: independent, and ties the weights to this set of channels."""
    instance_norm: bool = True
    """Subtract each window's context mean and divide by its deviation; forecasts are scaled
    back (Kim et al. 2022, RevIN, without its affine part)."""
    loss: Literal["mse", "mae"] = "mse"
    """Per-point loss; a sample's loss is its mean over valid target points."""

    @model_validator(mode="after")
    def _channels_told_apart(self) -> ModelConfig:
        if self.channel_embedding and self.channels == "mixed":
            raise ValueError(
                "channel_embedding: mixed tokens hold all channels already; "
                "use channels: independent or channel_embedding: false"
            )
        return self

    @property
    def decoder_layers(self) -> int:
        return self.num_decoder_layers or self.num_layers


@dataclass(frozen=True)
class SeriesShape:
    """The sizes that the data gives the network."""

    context_length: int
    prediction_length: int
    channels: int
    covariates: int

    def patches(self, patch_length: int) -> tuple[int, int]:
        """Number of context and of future patches; a last, partial patch counts."""
        return -(-self.context_length // patch_length), -(-self.prediction_length // patch_length)
