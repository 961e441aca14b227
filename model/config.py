"""Settings of the network. Imports no torch, so that a configuration is checked in milliseconds."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
Probability = Annotated[float, Field(ge=0.0, lt=1.0)]
NonNegative = Annotated[float, Field(ge=0.0)]

AttentionType = Literal["standard", "xformer", "flash", "frequency"]
NormKind = Literal["layer", "rms", "adaptive"]


class Section(BaseModel):
    """Settings that know their keys, take no other and cannot change."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


class TransformerConfig(Section):
    """What every transformer layer is made of; the arguments of the library's classes."""

    d_model: PositiveInt = 512
    """Width of the residual stream."""
    nhead: PositiveInt = 8
    """Attention heads; must divide d_model."""
    num_kv_heads: PositiveInt | None = None
    """Key/value heads for grouped-query attention (Ainslie et al. 2023); must divide nhead.
    Default: nhead."""
    num_layers: PositiveInt = 6
    """Layers of the encoder, and of the decoder unless num_decoder_layers says otherwise."""
    dim_feedforward: PositiveInt = 2048
    """Hidden width of the plain MLP. SwiGLU takes 2/3 of it, rounded up to a multiple of 64, so
    that both have about as many parameters."""
    dropout: Probability = 0.1
    """Dropout on each sub-layer's output, before it is added to the residual stream."""
    attention_dropout: Probability = 0.0
    """Dropout on attention weights. Fused kernels for the CPU have none: above 0 attention is
    computed block by block there, in linear memory but slower."""
    drop_path: Probability = 0.0
    """Probability that a sample skips a sub-layer in training (Huang et al. 2016); where channels
    are independent, each channel of a sample by itself."""
    activation: Literal["gelu", "relu", "swish"] | None = None
    """Of the plain MLP (default gelu). With SwiGLU only swish."""
    att_type: AttentionType = "standard"
    """The kernel of attention: standard (the formula, quadratic memory), xformer and flash (the
    same mathematics in linear memory), or frequency (between Fourier modes)."""
    decoder_att_type: AttentionType | None = None
    """att_type of the decoder. Default: att_type."""
    freq_modes: PositiveInt = 32
    """Lowest Fourier modes that frequency attention keeps."""
    strict_attention: bool = False
    """Refuse to fall back from the first kernel of att_type, with every kernel's reason."""
    norm_strategy: Literal["pre_norm", "post_norm"] = "pre_norm"
    """x + f(norm(x)) or norm(x + f(x))."""
    use_adaptive_ln: NormKind | Callable[[int], Any] = "layer"
    """Kind of norm: LayerNorm, RMSNorm, or one that learns how much of the mean to remove. In
    library use also a callable from d_model to a module."""
    use_swiglu: bool = True
    """Gated feed-forward (Shazeer 2020, "GLU Variants Improve Transformer")."""
    share_layers: bool = False
    """Use one layer's weights num_layers times (Lan et al. 2019, ALBERT)."""
    use_final_norm: bool = True
    """A norm after the last layer."""
    position: Literal["sinusoidal", "learned", "rotary"] = "sinusoidal"
    """How a token knows its place: added sines, an added learned vector, or queries and keys
    turned by their position (Su et al. 2021)."""
    max_seq_len: PositiveInt = 5000
    """Longest sequence; the size of the learned table."""
    use_moe: bool = False
    """Replace each feed-forward by a mixture of experts."""
    num_experts: PositiveInt = 8
    """Experts per mixture-of-experts layer."""
    top_k: PositiveInt = 2
    """Experts that each token is sent to."""
    router_score: Literal["softmax", "sigmoid"] = "softmax"
    """What turns the router's logits into gates, which are renormalised over the chosen; a single
    choice (top_k: 1) keeps its score, or the router would learn nothing (Fedus et al. 2021)."""
    router_noise: NonNegative = 0.0
    """Deviation of Gaussian noise on the router's logits in training."""
    capacity_factor: Annotated[float, Field(gt=0.0)] | None = None
    """Most tokens of a sample that an expert takes, as a multiple of an even share of those that
    are no padding; later tokens pass by. Default: none is dropped."""
    shared_expert: bool = False
    """Add a feed-forward that every token takes (Dai et al. 2024, DeepSeekMoE)."""
    balance_loss: NonNegative = 0.01
    """Weight of the load-balancing loss, per layer and per sample (Fedus et al. 2021)."""
    z_loss: NonNegative = 0.0
    """Weight of the mean squared log-partition of the router (Zoph et al. 2022, ST-MoE)."""
    balance_rate: NonNegative = 0.0
    """Step of the bias that balances without a loss: after each optimizer step an expert with
    less than its share of the global batch gets so much more in the choice, one with more so
    much less (Wang et al. 2024). 0: no bias."""

    @model_validator(mode="after")
    def _consistent(self) -> TransformerConfig:
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

    @property
    def att_type_of_decoder(self) -> AttentionType:
        return self.decoder_att_type or self.att_type


class ModelConfig(TransformerConfig):
    """The section `model`: what is trained."""

    architecture: Literal["encoder", "decoder", "encoder_decoder"] = "encoder_decoder"
    """encoder: the context's patches give the whole future at once. decoder: each patch gives
    the next one, causally. encoder_decoder: the decoder asks for each future patch."""
    num_decoder_layers: PositiveInt | None = None
    """Layers of the decoder of an encoder_decoder. Default: num_layers."""
    patch_length: PositiveInt = 16
    """Points per patch, that is, per token; 1 makes every point a token."""
    channels: Literal["independent", "mixed"] = "independent"
    """Forecast each channel of a series by itself with the same weights, or put all channels of
    a moment into one token."""
    channel_embedding: bool = False
    """Add a learned vector per channel, so that the same weights can tell channels apart; only
    with channels: independent, and ties the weights to this set of channels."""
    instance_norm: bool = True
    """Subtract each window's context mean and divide by its deviation; forecasts are scaled
    back (Kim et al. 2022, RevIN, without its affine part)."""
    loss: Literal["mse", "mae", "huber", "quantile", "student_t"] = "mse"
    """What is forecast and how it is scored: a point (mse, mae, huber), quantiles (pinball loss),
    or a Student-t distribution (negative log-likelihood)."""
    huber_delta: Annotated[float, Field(gt=0.0)] = 1.0
    """Where the Huber loss turns from squares to straight lines."""
    quantiles: Annotated[list[Annotated[float, Field(gt=0.0, lt=1.0)]], Field(min_length=1)] = [
        0.1,
        0.2,
        0.3,
        0.4,
        0.5,
        0.6,
        0.7,
        0.8,
        0.9,
    ]
    """Levels of loss: quantile, ascending; 0.5 is the point forecast."""

    @model_validator(mode="after")
    def _of_one_network(self) -> ModelConfig:
        if self.channel_embedding and self.channels == "mixed":
            raise ValueError(
                "channel_embedding: mixed tokens hold all channels already; "
                "use channels: independent or channel_embedding: false"
            )
        if self.architecture == "decoder" and self.att_type_of_decoder == "frequency":
            raise ValueError(f"att_type: {FREQUENCY_SEES_ALL}")
        if sorted(set(self.quantiles)) != list(self.quantiles):
            raise ValueError(f"quantiles: {self.quantiles} must ascend without repetition")
        if 0.5 not in self.quantiles:
            raise ValueError(
                f"quantiles: {self.quantiles} lack 0.5, the point forecast that is scored"
            )
        return self

    @property
    def decoder_layers(self) -> int:
        return self.num_decoder_layers or self.num_layers

    @property
    def transformer_layers(self) -> int:
        """Layers that pipeline stages can be cut from."""
        both = self.architecture == "encoder_decoder"
        return self.num_layers + (self.decoder_layers if both else 0)

    @property
    def distinct_layers(self) -> int:
        """Transformer layers with weights of their own."""
        if not self.share_layers:
            return self.transformer_layers
        return 2 if self.architecture == "encoder_decoder" else 1

    def patches(self, context_length: int, prediction_length: int) -> tuple[int, int]:
        """Returns the numbers of context and of future patches; a partial patch counts as one."""
        return -(-context_length // self.patch_length), -(-prediction_length // self.patch_length)

    def sequence_length(self, context_length: int, prediction_length: int) -> int:
        """Returns how many tokens each row holds between two layers.

        An encoder holds the context's patches, an encoder_decoder those and the future's beside
        them, and a decoder all but the last future patch, which is forecast and never read.
        """
        context, future = self.patches(context_length, prediction_length)
        if self.architecture == "encoder":
            return context
        return context + future - (self.architecture == "decoder")

    def unused(self) -> list[str]:
        """Settings that were given and change nothing beside the others, each with the reason."""
        attention = (self.att_type, self.att_type_of_decoder)
        rules: tuple[tuple[bool, str, tuple[str, ...]], ...] = (
            (not self.use_moe, "use_moe: false", OF_A_MIXTURE),
            (
                self.architecture != "encoder_decoder",
                f"architecture: {self.architecture}",
                ("num_decoder_layers",),
            ),
            (self.architecture == "encoder", "architecture: encoder", ("decoder_att_type",)),
            ("frequency" not in attention, "no frequency attention", ("freq_modes",)),
            (self.loss != "quantile", f"loss: {self.loss}", ("quantiles",)),
            (self.loss != "huber", f"loss: {self.loss}", ("huber_delta",)),
        )
        return [
            f"model.{key} has no effect with {reason}"
            for is_idle, reason, keys in rules
            for key in keys
            if is_idle and key in self.model_fields_set
        ]


OF_A_MIXTURE = (
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

FREQUENCY_SEES_ALL = (
    "frequency attention sees all of its input, the future too, so a causal decoder cannot use "
    "it; use standard, xformer or flash, or decoder_att_type beside a frequency encoder"
)

CALENDAR_SIZES = {"minute": 60, "hour": 24, "day_of_week": 7, "day_of_month": 31, "month": 12}
"""Calendar features that can be embedded, and how many values each has."""


@dataclass(frozen=True)
class SeriesShape:
    """The sizes that the data gives the network."""

    context_length: int
    prediction_length: int
    channels: int
    covariates: int
    """Columns known in advance that are read as numbers."""
    calendar: tuple[int, ...] = ()
    """Numbers of values of the calendar columns that are embedded; they come last."""
    missing: bool = True
    """Whether points may be missing. Where none is, attention needs no mask for them, and more
    kernels can answer."""
