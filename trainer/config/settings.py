"""The sections of a configuration, every key documented where it is declared.

Those of `model` are in model/config.py, but for init_from.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo, ZoneInfoNotFoundError

from pydantic import BeforeValidator, Field, model_validator

from model.config import CALENDAR_SIZES, LARGEST_INT, ModelConfig, PositiveInt, Section

NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST_INT)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OffIsNone = BeforeValidator(lambda value: "none" if value is False else value)
"""Validator that takes false for none: YAML reads a bare `off` as false."""

AllIsOne = BeforeValidator(lambda value: 1 if value == "all" else value)
"""Validator that takes 1 for `all`, of the distance between things."""


class NetworkConfig(ModelConfig):
    """The network, and the source of its first weights."""

    init_from: str | None = None
    """Run folder, checkpoint or export whose weights a new run starts from, as far as names and
    shapes are the same; the log names what is not taken over. Default: weights drawn by
    train.seed."""


class DataConfig(Section):
    """The series: their source, the columns that are forecast, and the windows and parts."""

    source: str = "vic_elec"
    """`vic_elec` (half-hourly electricity demand, extra `demo`) or a CSV or Parquet file: wide
    (a column per channel) or long (id_column names the series). A path is relative to the folder
    that the command runs in."""
    targets: Annotated[list[str], Field(min_length=1)] | None = None
    """Columns to forecast. Default: every numeric column that has no other role."""
    covariates: list[str] = []
    """Columns known in advance (holidays, prices): the network sees their future, too."""
    time_column: str | None = None
    """Column of timestamps, or `none`. Default: the first of time, date, timestamp, datetime
    and ds."""
    id_column: str | None = None
    """Column that names the series of a long file. Default: one series."""
    calendar: list[
        Literal[
            "time_of_day", "day_of_week", "day_of_year", "minute", "hour", "day_of_month", "month"
        ]
    ] = []
    """Calendar features of each timestamp that the network gets as covariates."""
    calendar_encoding: Literal["waves", "embedding"] = "waves"
    """Encoding of the calendar features: the sine and cosine of each phase, or the value (minute,
    hour, day_of_week, day_of_month or month) looked up in a learned table."""
    timezone: str | None = None
    """Time zone of the calendar, e.g. Australia/Melbourne. Timestamps that carry an offset are
    converted to it; others are taken as local already. Default: timestamps as they stand in the
    file."""
    context_length: PositiveInt = 336
    """Points that a forecast is made from."""
    prediction_length: PositiveInt = 48
    """Points that are forecast."""
    split: Annotated[list[float], Field(min_length=3, max_length=3)] = [0.7, 0.1, 0.2]
    """Training, validation and test part of each series in time order: fractions that add to 1,
    or numbers of rows. A validation or test window's context may reach into the part before."""
    rows: PositiveInt | None = None
    """Number of first rows of each series to use. Default: all."""
    scaling: Literal["train", "none"] = "train"
    """Scaling of each channel: standardised by the mean and deviation of its training part, or
    none."""
    season_lengths: list[PositiveInt] | None = None
    """Periods in points, shortest first: each gives a seasonal-naive baseline, the first scales
    MASE. Default: the day and the week, where the sampling interval has them."""
    score_every: Annotated[PositiveInt | None, AllIsOne] = None
    """Distance between the windows that are scored: `all` or 1 scores every window of a part, as
    the literature does. Default: the least with which at most 20,000 windows are scored and that
    shares no factor with a season, so that every time of a day counts."""

    @model_validator(mode="after")
    def _columns_have_one_part(self) -> DataConfig:
        for key in ("targets", "covariates"):
            names = getattr(self, key) or []
            twice = [name for name in names if names.count(name) > 1]
            if twice:
                raise ValueError(f"{key}: {twice[0]} stands twice")
        both = set(self.targets or []) & set(self.covariates)
        if both:
            raise ValueError(
                f"covariates: {min(both)} is a target; what is forecast cannot be known in advance"
            )
        return self

    @model_validator(mode="after")
    def _calendar_can_be_embedded(self) -> DataConfig:
        odd = [name for name in self.calendar if name not in CALENDAR_SIZES]
        if self.calendar_encoding == "embedding" and odd:
            raise ValueError(
                f"calendar: {odd[0]} has no values to embed; use {', '.join(CALENDAR_SIZES)}, "
                "or calendar_encoding: waves"
            )
        return self

    @model_validator(mode="after")
    def _timezone_exists(self) -> DataConfig:
        try:
            ZoneInfo("UTC" if self.timezone is None else self.timezone)
        except (ZoneInfoNotFoundError, ValueError, OSError):
            raise ValueError(
                f"timezone: there is no {self.timezone!r}; "
                "it is named like Australia/Melbourne or UTC"
            ) from None
        return self

    @model_validator(mode="after")
    def _seasons_fit(self) -> DataConfig:
        seasons = self.season_lengths or []
        if seasons != sorted(set(seasons)):
            raise ValueError(f"season_lengths: {seasons} must ascend without repetition")
        if seasons and seasons[-1] > self.context_length:
            raise ValueError(
                f"season_lengths: {seasons[-1]} is longer than context_length="
                f"{self.context_length}, which the naive forecast repeats it from"
            )
        return self

    @model_validator(mode="after")
    def _split_adds_up(self) -> DataConfig:
        if min(self.split) < 0 or self.split[0] == 0:
            raise ValueError("split: parts cannot be negative, and the training part cannot be 0")
        if max(self.split) <= 1 and abs(sum(self.split) - 1) > 1e-6:
            raise ValueError(f"split: the fractions {self.split} add to {sum(self.split):g}, not 1")
        return self


class ParallelConfig(Section):
    """The layout of the ranks. Data parallelism is what is left of the world."""

    pipeline: PositiveInt = 1
    """Pipeline stages."""
    tensor: PositiveInt = 1
    """Ranks that share each layer's heads and hidden width."""
    expert: PositiveInt = 1
    """Ranks that share a layer's experts."""
    zero_stage: Literal[1, 2, 3] = 1
    """ZeRO's stage: 1 partitions the optimizer's states over the data-parallel ranks, 2 the
    gradients too, 3 the weights too. With 3, activation_checkpointing: block frees a layer's
    gathered weights after its forward pass; without it they stay until its backward pass."""
    offload_optimizer: Annotated[Literal["none", "cpu"], OffIsNone] = "none"
    """Device that holds and updates the optimizer's states: the network's (none), or the cpu,
    which frees the device of them."""
    activation_checkpointing: Annotated[Literal["none", "block", "selective"], OffIsNone] = "none"
    """Recomputation in the backward pass to save memory: of each transformer layer (block), or of
    all in it but the matrix products and attention (selective)."""


class TrainConfig(Section):
    """The optimization. No key but micro_batch_size depends on the layout."""

    steps: PositiveInt = 1000
    """Optimizer steps of the whole run."""
    global_batch_size: PositiveInt = 64
    """Windows per optimizer step, over all ranks."""
    micro_batch_size: PositiveInt = 16
    """Windows that a rank computes at once; the rest is gradient accumulation."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    """AdamW's peak learning rate."""
    final_learning_rate: Fraction = 0.0
    """Learning rate at the cosine's end, as a share of learning_rate."""
    warmup_steps: NonNegativeInt = 100
    """Steps of linear warm-up before the cosine."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """Decoupled weight decay of matrices; norms and biases have none."""
    beta1: Annotated[float, Field(ge=0, lt=1)] = 0.9
    """AdamW's decay of the first moment."""
    beta2: Annotated[float, Field(ge=0, lt=1)] = 0.95
    """AdamW's decay of the second moment."""
    epsilon: Annotated[float, Field(gt=0)] = 1e-8
    """AdamW's term against division by zero."""
    gradient_clipping: Annotated[float, Field(ge=0)] = 1.0
    """Largest global gradient norm; 0 leaves gradients as they are."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Precision of weights and activations; master weights, moments and gradient sums are always
    fp32."""
    device: Literal["auto", "cpu"] = "auto"
    """Device of the ranks: GPUs where the machine has them (auto), or the cpu. A machine with GPUs
    that torch cannot use is refused with auto."""
    deterministic: bool = False
    """Whether GPUs compute by kernels that give the same bits each time, so that a resumed run is
    bit-equal to one that was not stopped; slower. CPUs always do."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of initial weights, order of samples and dropout."""

    def accumulation(self, replicas: int) -> int:
        """Return the micro-batches that each of `replicas` data-parallel replicas adds up."""
        return self.global_batch_size // (self.micro_batch_size * replicas)


class CheckpointConfig(Section):
    """When checkpoints are written, how, and which of them stay."""

    every: PositiveInt = 200
    """Steps between checkpoints; the last step always has one."""
    keep: PositiveInt = 3
    """Number of newest checkpoints that stay."""
    keep_every: NonNegativeInt = 0
    """Number of steps at whose multiples checkpoints stay for good; 0: none does."""
    asynchronous: bool = True
    """Whether checkpoints are written while training continues, from a copy of the state in the
    host's memory."""


class FaultsConfig(Section):
    """Detection of faults, and their consequences."""

    hang_seconds: Annotated[float, Field(ge=0, le=1e9)] = 300.0
    """Seconds without progress of some rank after which a run reports which ranks wait for which,
    and ends, to be started again; 0: never."""
    max_skipped_steps: PositiveInt = 10
    """Steps in a row that may be skipped, weights left as they are, because their loss or gradient
    is no number or a spike; the next one ends the run."""
    spike_factor: Annotated[float, Field(ge=0)] = 0.0
    """Multiple of the median of the last 64 gradient norms above which a norm is a spike; 0: none
    is."""
    slow_factor: Annotated[float, Field(ge=1)] = 1.5
    """Multiple of the median of its stage above which a rank's attention time makes the log name
    the rank as slow."""


class LoggingConfig(Section):
    """Output while a run trains; metrics.jsonl has every step regardless."""

    every: PositiveInt = 10
    """Steps between progress lines where the output is no terminal, and between comparisons of
    the ranks' attention times."""
    validate_every: NonNegativeInt = 0
    """Steps between passes over the validation windows; 0: never."""
    tensorboard: bool = True
    """Whether TensorBoard event files are written into the run folder."""
    sinks: list[Literal["wandb", "mlflow"]] = []
    """Further places for the metrics: Weights & Biases (extra `wandb`) and MLflow (extra `mlflow`),
    set up by their own environment variables, such as WANDB_MODE and MLFLOW_TRACKING_URI."""


class Settings(Section):
    """A whole configuration."""

    model: NetworkConfig = NetworkConfig()
    data: DataConfig = DataConfig()
    parallel: ParallelConfig = ParallelConfig()
    train: TrainConfig = TrainConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    faults: FaultsConfig = FaultsConfig()
    logging: LoggingConfig = LoggingConfig()
    deepspeed: dict[str, Any] = {}
    """Keys merged last into DeepSpeed's configuration; those that Forescale owns are refused."""
