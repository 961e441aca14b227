"""Sinks get the rows of a run, in one run of theirs after a resume, and can never stop it."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest

from model.errors import UserError
from tests.settings import tiny
from trainer.config.rules import check
from trainer.logs import sinks
from trainer.logs.metrics import MetricsLog, read_metrics
from trainer.logs.sink import RunDescription, Sink, scalars
from trainer.logs.sinks import Sinks

ROWS = [{"step": step, "loss": 0.5**step, "moe/load": [0.25, 0.75]} for step in range(1, 5)]
SENT = [
    (row["step"], {"loss": row["loss"], "moe/load/0": 0.25, "moe/load/1": 0.75}) for row in ROWS
]


@pytest.fixture(autouse=True)
def _imported_anew() -> Iterator[None]:
    """Forget modules that a test has imported with a package of its own."""
    yield
    for name in ("wandb", "mlflow"):
        sys.modules.pop(f"trainer.logs.{name}_sink", None)


class Recorder:
    """A sink that records what it is called with, and fails at a step or does not come back."""

    def __init__(self, fails_at: int = 0, gate: threading.Event | None = None) -> None:
        self.calls: list[Any] = []
        self._fails_at, self._gate = fails_at, gate

    def open(self, run: RunDescription, identifier: str | None) -> str:
        self.calls.append(identifier)
        return identifier or "number-7"

    def write(self, step: int, numbers: Mapping[str, float]) -> None:
        if self._gate is not None:
            self._gate.wait(20)
        if step == self._fails_at:
            raise ConnectionError("nobody there\nat all")
        self.calls.append((step, dict(numbers)))

    def close(self, *, failed: bool) -> None:
        self.calls.append("failed" if failed else "finished")


def described(folder: Path) -> RunDescription:
    return RunDescription(folder, {"train.steps": 4, "model.d_model": 32})


def use(monkeypatch: pytest.MonkeyPatch, sink: Sink) -> None:
    monkeypatch.setattr(sinks, "make_sink", lambda name: sink)


def write(folder: Path, rows: list[dict[str, Any]], done: int = 0, name: str = "wandb") -> None:
    """Write rows to metrics.jsonl and to a sink."""
    file = folder / "metrics.jsonl"
    with MetricsLog(file, done, sinks=Sinks([name, name], described(folder))) as log:
        for row in rows:
            log.write(row)


def test_a_row_is_numbers_by_name() -> None:
    assert scalars({"step": 3, "loss": 0.5, "load": [1.0, 2.0]}) == {
        "loss": 0.5,
        "load/0": 1.0,
        "load/1": 2.0,
    }


def test_a_resumed_run_goes_on_in_the_same_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Recorder(), Recorder()
    use(monkeypatch, first)
    write(tmp_path, ROWS[:3])
    assert first.calls == [None, *SENT[:3], "finished"]
    assert (tmp_path / "wandb.id").read_text() == "number-7\n"
    use(monkeypatch, second)
    write(tmp_path, ROWS[2:], done=2)
    assert second.calls == ["number-7", *SENT[2:], "finished"]
    assert [row["step"] for row in read_metrics(tmp_path / "metrics.jsonl")] == [1, 2, 3, 4]


def test_numbers_that_come_later_are_sent_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = Recorder()
    use(monkeypatch, sink)
    with MetricsLog(tmp_path / "m", 0, sinks=Sinks(["mlflow"], described(tmp_path))) as log:
        log.write(ROWS[0])
        log.complete({**ROWS[0], "validation_mse": 0.25})
    assert sink.calls == [None, SENT[0], (1, {"validation_mse": 0.25}), "finished"]


def test_a_run_that_fails_is_a_failed_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = Recorder()
    use(monkeypatch, sink)
    with (
        pytest.raises(RuntimeError),
        MetricsLog(tmp_path / "m", 0, sinks=Sinks(["wandb"], described(tmp_path))),
    ):
        raise RuntimeError
    assert sink.calls == [None, "failed"]


def test_a_sink_that_fails_warns_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    sink = Recorder(fails_at=2)
    use(monkeypatch, sink)
    write(tmp_path, ROWS)
    assert [record.getMessage() for record in caplog.records] == [
        "wandb gets no more metrics: nobody there; metrics.jsonl has all of them"
    ]
    assert sink.calls == [None, SENT[0]]
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4


def test_a_package_that_breaks_when_imported_warns_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    write(tmp_path, ROWS, name="mlflow")
    assert len(caplog.records) == 1 and "mlflow gets no more metrics: " in caplog.text
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4


def test_a_sink_that_does_not_come_back_delays_no_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    gate = threading.Event()
    use(monkeypatch, Recorder(gate=gate))
    monkeypatch.setattr(sinks, "CLOSE_SECONDS", 0.05)
    write(tmp_path, ROWS)
    gate.set()
    assert len(read_metrics(tmp_path / "metrics.jsonl")) == 4
    assert len(caplog.records) == 1 and "it is not done after 0.05 s" in caplog.text
    monkeypatch.setattr(sinks, "MAX_WAITING", 2)
    gate.clear()
    caplog.clear()
    write(tmp_path, ROWS)
    gate.set()
    assert len(caplog.records) == 1 and "2 steps wait for it" in caplog.text


def test_a_package_that_is_missing_is_refused_before_a_rank_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that happens to have its name, such as W&B's own, is no package."""
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    (tmp_path / "wandb").mkdir()
    with pytest.raises(UserError) as caught:
        check(tiny(logging__sinks=["wandb"]), 1)
    assert str(caught.value) == (
        f"logging.sinks: wandb is not installed for {sys.executable}; pip install wandb there, or "
        "leave it out"
    )
    (tmp_path / "wandb" / "__init__.py").touch()
    sys.path_importer_cache.clear()
    check(tiny(logging__sinks=["wandb"]), 1)


# The packages, offline; where they are not installed, small ones in their place


class FakeRun:
    """A run of the small wandb."""

    def __init__(self, options: dict[str, Any]) -> None:
        self.options, self.rows, self.ended = options, [], None
        self.id, self.url = options["id"] or "w1", None
        self.config = SimpleNamespace(update=lambda settings, allow_val_change: None)

    def define_metric(self, name: str, step_metric: str) -> None:
        assert (name, step_metric) == ("*", "step")

    def log(self, row: dict[str, float]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.ended = exit_code


def fake(monkeypatch: pytest.MonkeyPatch, name: str, **content: Any) -> None:
    module = ModuleType(name)
    vars(module).update(content)
    monkeypatch.setitem(sys.modules, name, module)


def test_wandb_is_called_as_it_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[FakeRun] = []
    mode = SimpleNamespace(mode="offline")

    def init(**options: Any) -> FakeRun:
        runs.append(FakeRun(options))
        return runs[-1]

    fake(
        monkeypatch,
        "wandb",
        init=init,
        setup=lambda: SimpleNamespace(settings=mode),
        Settings=dict,
        login=lambda prompt: False,
    )
    write(tmp_path, ROWS[:3])
    write(tmp_path, ROWS[2:], done=2)
    assert [run.options["id"] for run in runs] == [None, "w1"]
    assert runs[0].options["project"] == "forescale" and runs[0].options["resume"] == "allow"
    assert runs[1].rows == [{"step": step, **numbers} for step, numbers in SENT[2:]]
    assert [run.ended for run in runs] == [0, 0]


def test_nobody_is_asked_to_log_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    online = SimpleNamespace(settings=SimpleNamespace(mode="online"))
    fake(monkeypatch, "wandb", setup=lambda: online, login=lambda prompt: False)
    write(tmp_path, ROWS)
    assert "nobody is logged in: run `wandb login`, or set WANDB_MODE=offline" in caplog.text


class FakeClient:
    """The small mlflow's client; what it is told stays."""

    told: ClassVar[list[Any]] = []

    def get_experiment_by_name(self, name: str) -> None:
        assert name == "forescale"

    def create_experiment(self, name: str) -> str:
        return "0"

    def create_run(self, experiment: str, run_name: str) -> Any:
        return SimpleNamespace(info=SimpleNamespace(run_id="m1"))

    def update_run(self, identifier: str, status: str) -> None:
        self.told.append((identifier, status))

    def log_batch(self, identifier: str, metrics: Any = (), params: Any = ()) -> None:
        self.told += [(m.key, m.value, m.step) for m in metrics]
        self.told += [(p.key, p.value) for p in params]

    def set_terminated(self, identifier: str, status: str) -> None:
        self.told.append((identifier, status))


def test_mlflow_is_called_as_it_documents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def metric(key: str, value: float, timestamp: int, step: int) -> Any:
        return SimpleNamespace(key=key, value=value, step=step)

    def parameter(key: str, value: str) -> Any:
        return SimpleNamespace(key=key, value=value)

    monkeypatch.setattr(FakeClient, "told", [])
    fake(monkeypatch, "mlflow", MlflowClient=FakeClient)
    fake(monkeypatch, "mlflow.entities", Metric=metric, Param=parameter)
    write(tmp_path, ROWS[:1], name="mlflow")
    write(tmp_path, ROWS[1:2], done=1, name="mlflow")
    numbers = [
        [(name, value, step) for name, value in numbers.items()] for step, numbers in SENT[:2]
    ]
    assert FakeClient.told == [
        ("train.steps", "4"),
        ("model.d_model", "32"),
        *numbers[0],
        ("m1", "FINISHED"),
        ("m1", "RUNNING"),
        *numbers[1],
        ("m1", "FINISHED"),
    ]


def test_the_real_wandb_keeps_all_rows_offline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("wandb", reason="needs the extra wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    write(tmp_path, ROWS[:3])
    write(tmp_path, ROWS[2:], done=2)
    assert not caplog.records
    identifier = (tmp_path / "wandb.id").read_text().strip()
    files = sorted((tmp_path / "wandb").glob(f"offline-run-*/run-{identifier}.wandb"))
    assert files
    counts = {}
    for _ in range(100):  # another process of W&B's writes them
        counts = {file.parent.name: file.read_bytes().count(b"moe/load/1") for file in files}
        if all(counts.values()):
            return
        time.sleep(0.1)
    pytest.fail(f"rows are missing: {counts}")


def test_the_real_mlflow_keeps_all_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    mlflow = pytest.importorskip("mlflow", reason="needs the extra mlflow")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    write(tmp_path, ROWS[:3], name="mlflow")
    write(tmp_path, [{**ROWS[2], "grad_norm": float("nan")}, ROWS[3]], done=2, name="mlflow")
    assert not caplog.records
    client = mlflow.MlflowClient()
    identifier = (tmp_path / "mlflow.id").read_text().strip()
    history = client.get_metric_history(identifier, "loss")
    assert [(m.step, m.value) for m in history] == [
        (row["step"], row["loss"]) for row in (*ROWS[:3], *ROWS[2:])
    ]
    run = client.get_run(identifier)
    assert run.info.status == "FINISHED" and run.data.params["model.d_model"] == "32"
    json.dumps(run.data.metrics)
