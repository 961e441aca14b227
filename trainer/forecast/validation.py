"""Scores of a network that is being trained, until a signal comes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from parallel.collectives import any_rank
from parallel.mesh import Mesh
from trainer.data import Dataset, Split
from trainer.data.windows import WindowBatch
from trainer.forecast.baselines import baseline_names
from trainer.forecast.evaluate import Predict, evaluate
from trainer.forecast.scores import MODEL, Evaluation
from trainer.logs.metrics import Row
from trainer.logs.names import VALIDATION, ZERO_SHOT
from trainer.logs.progress import ScoringProgress

LOOK_EVERY = 32
"""Batches after which ranks ask each other whether a signal has come."""


class StoppedError(Exception):
    """A signal has come while windows were scored."""


class Scoring:
    """Scores datasets by the network that all ranks hold between them."""

    def __init__(
        self,
        predict: Predict,
        levels: Sequence[float],
        *,
        batch_size: int,
        mesh: Mesh,
        is_stopped: Callable[[], bool],
    ) -> None:
        """`levels` are those of the quantiles that `predict` returns beside points."""
        self._predict, self._levels = predict, levels
        self._batch_size, self._mesh, self._is_stopped = batch_size, mesh, is_stopped

    def validation(self, trained: Dataset, others: Mapping[str, Dataset]) -> Row:
        """Return what a step's row says of its weights; nothing where a signal comes.

        That is the MSE on the validation part of what is trained on, if it has any, and of other
        series MASE, that of seasonal naive, and the weighted quantile loss.
        """
        row: Row = {}
        try:
            if trained.windows(Split.VALIDATION):
                scores = self.scores(trained, Split.VALIDATION, with_bar=False).scores()
                row[VALIDATION] = scores[MODEL]["mse"]
            for name, series in others.items():
                scores = self.scores(series, Split.TEST, with_bar=False).scores()
                row[f"{ZERO_SHOT}{name}/mase"] = scores[MODEL]["mase"]
                row[f"{ZERO_SHOT}{name}/naive_mase"] = scores[baseline_names(series)[0]]["mase"]
                if "wql" in scores[MODEL]:
                    row[f"{ZERO_SHOT}{name}/wql"] = scores[MODEL]["wql"]
        except StoppedError:
            return {}
        return row

    def scores(
        self, dataset: Dataset, split: Split, *, keep: Sequence[int] = (), with_bar: bool = True
    ) -> Evaluation:
        """Score a split; `keep` are windows whose forecasts are kept.

        Raises StoppedError where a signal comes.
        """
        with ScoringProgress(split, shown=self._mesh.is_main, with_bar=with_bar) as progress:
            return evaluate(
                dataset,
                split,
                lambda batches: self._predict(self._until_stopped(batches)),
                batch_size=self._batch_size,
                levels=self._levels,
                mesh=self._mesh,
                keep=keep,
                progress=progress,
            )

    def _until_stopped(self, batches: Iterable[WindowBatch]) -> Iterator[WindowBatch]:
        """Yield batches; all ranks ask for equally many, and so look for a signal together."""
        for number, batch in enumerate(batches):
            if number % LOOK_EVERY == 0 and any_rank(self._mesh, self._is_stopped()):
                raise StoppedError
            yield batch
