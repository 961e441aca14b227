"""Everything that can be refused is refused here, in seconds and before a rank starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError
from model.sentences import counted, shortened
from parallel.layout import Layout
from trainer.config import Configuration
from trainer.config.rules import check, check_tokens
from trainer.config.sizes import check_sizes
from trainer.data import Dataset, Split
from trainer.data.cache import default_cache
from trainer.data.calendars import OF_A_DAY
from trainer.data.frequency import Frequency
from trainer.data.zero_shot import zero_shot_sets
from trainer.files import check_reachable
from trainer.logs.names import VALIDATION, ZERO_SHOT
from trainer.resume import Start, choose, inherit
from trainer.run.folder import RunFolder


@dataclass(frozen=True)
class Plan:
    """A run that may start."""

    configuration: Configuration
    layout: Layout
    dataset: Dataset
    zero_shot: dict[str, Dataset]
    """Series that are scored in training, by name, and not trained on."""
    run: RunFolder
    start: Start

    def warnings(self) -> list[str]:
        """Return a sentence about each thing that the run will not do as one might expect."""
        settings, train = self.configuration.settings, self.configuration.settings.train
        found = [f"data: {note}" for note in self.dataset.notes]
        if not _is_runs_own(self.configuration.file):  # which holds every key
            found += settings.model.unused("model.")
            if "decay_share" in train.model_fields_set and train.schedule != "wsd":
                found.append(f"train.decay_share has no effect with schedule: {train.schedule}")
        if self.dataset.past and not settings.model.reads_past:
            found.append(
                f"{shortened(self.dataset.past)}: not read, as model.channels=independent sees "
                "each channel by itself; grouped reads what is known up to the present"
            )
        intervals = self.dataset.facts.intervals
        if intervals and not any(Frequency.parse(name).has_clock for name in intervals):
            still = [name for name in settings.data.calendar if name in OF_A_DAY]
            if still:
                found.append(
                    f"data.calendar: {shortened(still)} is the same at every point of days"
                )
        if settings.model.lora_rank and settings.model.init_from is None:
            found.append(
                "model.lora_rank: the layers' matrices stay as they were drawn, at random; "
                "model.init_from names trained ones"
            )
        if train.warmup_steps > train.steps:
            found.append(f"train.warmup_steps={train.warmup_steps} is longer than the run")
        return found


def prepare(
    configuration: Configuration,
    *,
    run_dir: Path | None = None,
    resume: str = "auto",
    world: int = 1,
) -> Plan:
    """Check settings, data and run folder; imports no torch and starts nothing.

    `run_dir` is by default the run whose own configuration this is, else runs/NAME. Raises
    UserError for what the user can mend.
    """
    file = configuration.file
    default = file.parent if _is_runs_own(file) else Path("runs") / configuration.name
    run = RunFolder(run_dir or default)
    check_reachable(run.path, "--run-dir: ")
    configuration = inherit(configuration, run)
    layout = check(configuration, world)
    data, cache = configuration.settings.data, default_cache(run.path.parent)
    try:
        dataset = Dataset(data, cache)
        may_have_fewer = configuration.settings.model.takes_fewer_channels
        zero_shot = zero_shot_sets(data, dataset, cache, may_have_fewer=may_have_fewer)
    except UserError as error:
        raise configuration.locate(error) from None
    _check_best(configuration, dataset, zero_shot)
    _check_channels(configuration, dataset)
    check_tokens(configuration, dataset.shape)
    check_sizes(configuration, layout, dataset.shape)
    start = choose(configuration, run, dataset, resume)
    _check_places(configuration, dataset, start)
    return Plan(configuration, layout, dataset, zero_shot, run, start)


def _check_channels(configuration: Configuration, dataset: Dataset) -> None:
    """Raise UserError where sources have other numbers of channels than the network takes."""
    if not dataset.has_fewer_channels or configuration.settings.model.takes_fewer_channels:
        return
    counts = {
        source.name: len(part.series.columns.target)
        for source, part in zip(dataset.config.sources, dataset.parts, strict=True)
    }
    fewest, most = min(counts, key=counts.__getitem__), max(counts, key=counts.__getitem__)
    raise configuration.error(
        "data.source",
        f"{fewest} has {counted(counts[fewest], 'channel')}, and {most} {counts[most]}; `forescale "
        "prepare` them with as many by data.targets, or set model.channels=grouped without "
        "channel_embedding, which masks those that a series lacks",
    )


def _check_best(
    configuration: Configuration, dataset: Dataset, zero_shot: dict[str, Dataset]
) -> None:
    """Raise UserError for a score that no validation of the run has."""
    settings = configuration.settings
    best, patience = settings.checkpoint.best, settings.train.patience
    if best is None:
        if patience:
            way_out = f"set checkpoint.best={VALIDATION}, or train.patience=0"
            raise configuration.error("train.patience", f"no score says what is better; {way_out}")
        return
    if not settings.logging.validate_every:
        raise configuration.error(
            "checkpoint.best", f"no validation has {best}; set logging.validate_every"
        )
    scores = [VALIDATION] if dataset.windows(Split.VALIDATION) else []
    kinds = ("mase", "wql") if settings.model.loss == "quantile" else ("mase",)
    scores += [f"{ZERO_SHOT}{name}/{kind}" for name in zero_shot for kind in kinds]
    if best not in scores:
        there = f"it may be {shortened(scores, ' or ')}" if scores else "no validation has any"
        raise configuration.error("checkpoint.best", f"no validation has {best}; {there}")


def _check_places(configuration: Configuration, dataset: Dataset, start: Start) -> None:
    """Raise UserError where weights of model.init_from would read a covariate as another one."""
    if start.weights is None:
        return
    facts = start.weights.facts
    moved = facts.moved(dataset.facts)
    if moved is not None:
        is_known = moved in dataset.facts.known
        names = facts.known if is_known else facts.past
        raise configuration.error(
            "data.covariates" if is_known else "data.past_covariates",
            f"{moved} has another place than in {start.weights.path}, which reads "
            f"{', '.join(names)}; name those first, in this order",
        )


def _is_runs_own(file: Path) -> bool:
    """Return whether a configuration is the one that a run has written into its folder."""
    run = RunFolder(file.parent)
    return file.name == run.config_file.name and run.environment_file.is_file()
