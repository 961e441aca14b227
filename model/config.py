"""Settings of the network.

This file imports no torch, so that a configuration is checked in milliseconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

LARGEST_INT = 10**15
"""Largest whole number that a setting takes; more of anything is a slip."""

PositiveInt = Annotated[int, Field(ge=1, le=LARGEST_INT)]
LayerCount = Annotated[int, Field(ge=1, le=10_000)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]
Positive = Annotated[float, Field(gt=0.0)]
QuantileLevels = Annotated[list[Annotated[float, Field(gt=0.0, lt=1.0)]], Field(min_length=1)]

AttentionType = Literal["standard", "xformer", "flash", "frequency"]
NormKind = Literal["layer", "rms", "adaptive"]


UnusedRules = tuple[tuple[bool, str, tuple[str, ...]], ...]


class Section(BaseModel):
    """A group of settings with fixed keys; unknown keys are refused and values cannot change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class TransformerConfig(Section):
    """Settings of a transformer's layers, and the arguments of the library's classes."""

    d_model: PositiveInt = 512
    """Width of the residual stream."""
    nhead: PositiveInt = 8
    """Number of attention heads; must divide d_model."""
    num_kv_heads: PositiveInt | None = None
    """Number of key/value heads for grouped-query attention (Ainslie et al. 2023); must divide
    nhead. Default: nhead."""
    num_layers: LayerCount = 6
    """Number of layers of the encoder, and of the decoder unless num_decoder_layers is set."""
    dim_feedforward: PositiveInt = 2048
    """Hidden width of the plain MLP. SwiGLU uses 2/3 of it, rounded up to a multiple of 64, so
    that both have about as many parameters."""
    dropout: Probability = 0.1
    """Dropout probability on each sub-layer's output, before it is added to the residual
    stream."""
    attention_dropout: Probability = 0.0
    """Dropout probability on attention weights. Fused CPU kernels do not support it: above 0,
    attention is computed block by block there, in linear memory but slower."""
    drop_path: Probability = 0.0
    """Probability that a sample skips a sub-layer in training (Huang et al. 2016, stochastic
    depth). Unless channels are mixed, it is drawn for each channel of a sample."""
    activation: Literal["gelu", "relu", "swish"] | None = None
    """Activation of the plain MLP. Default: gelu. With SwiGLU only swish is possible."""
    att_type: AttentionType = "standard"
    """Type of attention: standard (the formula, in quadratic memory), xformer and flash (the same
    mathematics in linear memory), or frequency (attention between Fourier modes)."""
    decoder_att_type: AttentionType | None = None
    """Type of attention of the decoder. Default: att_type."""
    freq_modes: PositiveInt = 32
    """Number of lowest Fourier modes that frequency attention keeps."""
    strict_attention: bool = False
    """Whether falling back from the first kernel of att_type is an error, which lists every
    kernel's reason."""
    norm_strategy: Literal["pre_norm", "post_norm"] = "pre_norm"
    """Place of the norm: x + f(norm(x)) for pre_norm, norm(x + f(x)) for post_norm."""
    use_adaptive_ln: NormKind | Callable[[int], Any] = "layer"
    """Kind of norm: layer (LayerNorm), rms (RMSNorm), or adaptive, which learns how much of the
    mean to remove. As a library's argument also a callable from d_model to a module."""
    use_swiglu: bool = True
    """Whether the feed-forward is gated (Shazeer 2020, "GLU Variants Improve Transformer")."""
    share_layers: bool = False
    """Whether one layer's weights are used num_layers times (Lan et al. 2019, ALBERT)."""
    use_final_norm: bool = True
    """Whether a norm follows the last layer."""
    position: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    """Encoding of positions: sinusoidal and learned vectors are added to the tokens, rotary
    rotates queries and keys (Su et al. 2021, RoFormer)."""
    qk_norm: bool = False
    """Whether queries and keys are divided by their root mean square, with gains for each head, so
    that scores stay bounded, in bf16 too (Henry et al. 2020; Dehghani et al. 2023, ViT-22B)."""
    max_seq_len: PositiveInt = 5000
    """Length of the longest sequence in tokens, and of the table of learned positions."""
    lora_rank: Annotated[int, Field(ge=0, le=LARGEST_INT)] = 0
    """Rank of the adapters by which the layers' matrices are fine-tuned, while they themselves stay
    as they are (Hu et al. 2021, LoRA); norms, the input projection and the head are trained as
    ever. 0: all weights are trained."""
    lora_alpha: Positive | None = None
    """Scale of an adapter's product, divided by lora_rank. Default: lora_rank, a scale of 1."""
    use_moe: bool = False
    """Whether a mixture of experts replaces each feed-forward."""
    num_experts: PositiveInt = 8
    """Number of experts in each mixture-of-experts layer."""
    top_k: PositiveInt = 2
    """Number of experts that each token is sent to."""
    router_score: Literal["softmax", "sigmoid"] = "softmax"
    """Function from the router's logits to gates, which are renormalised over the chosen experts.
    A single choice (top_k: 1) keeps its score, or the router would learn nothing (Fedus et al.
    2021)."""
    router_noise: NonNegative = 0.0
    """Standard deviation of Gaussian noise that is added to the router's logits in training."""
    capacity_factor: Positive | None = None
    """Capacity of an expert for one sample, as a multiple of an even share of the tokens that are
    no padding; later tokens are dropped. Default: no limit, nothing is dropped."""
    shared_expert: bool = False
    """Whether a shared expert computes every token too (Dai et al. 2024, DeepSeekMoE)."""
    balance_loss: NonNegative = 0.01
    """Weight of the load-balancing loss, per layer and per sample (Fedus et al. 2021)."""
    z_loss: NonNegative = 0.0
    """Weight of the z-loss, the router's mean squared log-partition (Zoph et al. 2022, ST-MoE)."""
    balance_rate: NonNegative = 0.0
    """Step size of a bias that balances without a loss (Wang et al. 2024). After each optimizer
    step an expert that received less than its share of the global batch has its bias raised by
    this much, one that received more has it lowered. 0: no bias."""

    @model_validator(mode="after")
    def _check_layers(self) -> TransformerConfig:
        if self.d_model % self.nhead:
            raise ValueError(f"nhead: {self.nhead} heads do not divide d_model={self.d_model}")
        if self.nhead % self.kv_heads:
            raise ValueError(f"num_kv_heads: {self.kv_heads} does not divide nhead={self.nhead}")
        if self.position == "rotary" and self.head_dim % 2:
            raise ValueError(
                f"position: rotary turns pairs, and d_model / nhead = {self.head_dim} is odd"
            )
        if self.use_swiglu and self.activation not in (None, "swish"):
            raise ValueError(
                f"activation: {self.activation} needs use_swiglu: false (SwiGLU's gate is swish)"
            )
        if self.use_moe and self.top_k > self.num_experts:
            raise ValueError(f"top_k: {self.top_k} exceeds num_experts={self.num_experts}")
        return self

    def unused(self, section: str = "") -> list[str]:
        """Return a sentence for each setting that was given but has no effect, with the reason.

        `section` stands before each setting, such as "model.".
        """
        return [
            f"{section}{key} has no effect with {reason}"
            for is_unused, reason, keys in self.unused_rules()
            for key in keys
            if is_unused and key in self.model_fields_set
        ]

    def unused_rules(self) -> UnusedRules:
        """Return when settings have no effect: whether it is so, the reason, and the settings."""
        attention = (self.att_type, self.att_type_of_decoder)
        return (
            (not self.use_moe, "use_moe: false", MIXTURE_SETTINGS),
            ("frequency" not in attention, "no frequency attention", ("freq_modes",)),
            (not self.lora_rank, "lora_rank: 0", ("lora_alpha",)),
        )

    @property
    def lora_scale(self) -> float:
        """Scale of adapters' products."""
        return (self.lora_alpha or self.lora_rank) / max(self.lora_rank, 1)

    @property
    def kv_heads(self) -> int:
        """Number of key/value heads."""
        return self.num_kv_heads or self.nhead

    @property
    def head_dim(self) -> int:
        """Width of an attention head."""
        return self.d_model // self.nhead

    @property
    def feedforward_width(self) -> int:
        """Hidden width of the feed-forward, SwiGLU's factor of 2/3 included."""
        if not self.use_swiglu:
            return self.dim_feedforward
        return -(-2 * self.dim_feedforward // (3 * 64)) * 64

    @property
    def att_type_of_decoder(self) -> AttentionType:
        """Type of attention of the decoder."""
        return self.decoder_att_type or self.att_type


MIXTURE_SETTINGS = (
    "num_experts",
    "top_k",
    "router_score",
    "router_noise",
    "capacity_factor",
    "shared_expert",
    "balance_loss",
    "z_loss",
    "balance_rate",
)
"""Settings that have an effect with use_moe: true only."""

FREQUENCY_SEES_ALL = (
    "frequency attention sees all of its input, the future too, so a causal decoder cannot use "
    "it; use standard, xformer or flash, or decoder_att_type beside a frequency encoder"
)
"""Why a causal decoder refuses frequency attention, and the alternatives, in a user's words."""
