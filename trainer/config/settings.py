"""The sections of a configuration, every key documented where it is declared.

Those of `model` are in model/network_config.py, but for init_from, and those of `data` in
data_settings.py.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from model.config import LARGEST_INT, PositiveInt, Section
from model.network_config import ModelConfig
from trainer.config.data_settings import DataConfig

NonNegativeInt = Annotated[int, Field(ge=0, le=LARGEST_INT)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
OffIsNone = BeforeValidator(lambda value: "none" if value is False else value)
"""Validator that takes false for none: YAML reads a bare `off` as false."""


class NetworkConfig(ModelConfig):
    """The network, and the source of its first weights."""

    init_from: str | None = None
    """Run folder, checkpoint or export whose weights a new run starts from, as far as names and
    shapes are the same; the log names what is not taken over. Settings of `model` that are not set
    are its own. Default: weights drawn by train.seed."""


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
    schedule: Literal["cosine", "linear", "wsd"] = "cosine"
    """Schedule of the learning rate after the warm-up: down to the end by half a cosine or a line,
    or wsd, warm-up-stable-decay, constant and only at the end down."""
    decay_share: Fraction = 0.2
    """Share of the steps in which schedule: wsd comes down."""
    final_learning_rate: Fraction = 0.0
    """Learning rate at the schedule's end, as a share of learning_rate."""
    patience: NonNegativeInt = 0
    """Validations in a row without a better score, by checkpoint.best, after which training ends
    before its last step; 0: it does not."""
    warmup_steps: NonNegativeInt = 100
    """Steps of linear warm-up before the schedule."""
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
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay in a step of an exponential moving average of the weights, which is then scored,
    exported and forecast with: 0.999 averages over about 1,000 steps. 0 keeps none."""
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
    best: str | None = None
    """Score of validations whose lowest value makes a checkpoint the run's best: validation_mse, or
    zero_shot/SET/mase of a set of data.validate_on. The best stays, and is what is scored at the
    end, exported, evaluated and forecast with, and what init_from takes. Default: the newest is."""
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
