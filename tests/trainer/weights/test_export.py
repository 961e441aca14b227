"""What is exported is what was trained, and nothing in an export can run."""

from __future__ import annotations

import json
import logging
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from model.errors import UserError
from tests import ranks
from tests.conftest import ROOT
from tests.settings import UNSCORED, train_rank
from tests.trainer.weights.conftest import weights
from trainer.data import Split
from trainer.forecast.forecaster import Forecaster
from trainer.weights.export import export, split_into_files
from trainer.weights.export_format import INDEX, Export
from trainer.weights.source import find


@pytest.mark.parametrize("file_bytes", [10**9, 100_000])
def test_one_loader_gives_the_same_of_a_run_a_checkpoint_and_an_export(
    run: Path, tmp_path: Path, file_bytes: int
) -> None:
    checkpoint = run / "checkpoints" / "step-00000003"
    export(find(run), tmp_path / "out", file_bytes=file_bytes)
    several = file_bytes < 10**9
    assert (tmp_path / "out" / INDEX).exists() == several
    assert (len(list((tmp_path / "out").glob("*.safetensors"))) > 1) == several
    first = Forecaster.load(run)
    for path in (checkpoint, tmp_path / "out"):
        other = Forecaster.load(path)
        assert other.step == 3 and other.facts == first.facts
        for name, tensor in weights(first).items():
            assert torch.equal(weights(other)[name], tensor), name
    assert not list(tmp_path.glob(".*"))


def test_plain_torch_reads_it(run: Path, tmp_path: Path) -> None:
    export(find(run), tmp_path / "out")
    network = Forecaster.load(run).network
    held = load_file(tmp_path / "out" / "model.safetensors")
    assert held.keys() == network.state_dict().keys()
    assert any("bias" in name and "router" in name for name in held)
    network.load_state_dict(held, strict=True)


def test_it_loads_without_deepspeed_and_without_the_data(run: Path, tmp_path: Path) -> None:
    export(find(run), tmp_path / "out")
    config = tmp_path / "out" / "config.json"
    config.write_text(config.read_text().replace('"vic_elec"', '"gone.csv"'))
    code = (
        "import sys, numpy; from forescale import Forecaster\n"
        f"forecaster = Forecaster.load({str(tmp_path / 'out')!r})\n"
        "made = forecaster.forecast(numpy.ones((2, 96, 2)), numpy.zeros((2, 128, 3)))\n"
        "print(made.shape, 'deepspeed' in sys.modules)"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert told.stdout == "(2, 32, 2) False\n"


def test_forecasts_are_in_the_series_own_units(run: Path) -> None:
    forecaster = Forecaster.load(run)
    dataset = forecaster.dataset
    batch = dataset.batch(Split.TEST, np.arange(4))
    [(_, standardised)] = forecaster.predict_windows([batch])
    mean, deviation = (of[0] for of in dataset.scales(np.zeros(1, np.int64)))
    context = batch.context * deviation + mean
    facts = forecaster.facts
    known = batch.covariates * np.array(facts.covariate_deviation) + np.array(facts.covariate_mean)
    made = forecaster.forecast(context, known)
    expected = standardised[..., 0].double().numpy() * deviation + mean
    np.testing.assert_allclose(made, expected, rtol=1e-5)
    with pytest.raises(UserError, match=r"context: expected \[B, 1 to 96, 2\], got \[4, 96, 1\]"):
        forecaster.forecast(context[:, :, 1:], batch.covariates)
    with pytest.raises(UserError, match=r"covariates: expected \[B, 128, 3\], got \[4, 128, 0\]"):
        forecaster.forecast(context)


def test_bf16_is_half_the_size_and_the_rounded_weights(run: Path, tmp_path: Path) -> None:
    export(find(run), tmp_path / "out", precision="bf16")
    held = load_file(tmp_path / "out" / "model.safetensors")
    for name, tensor in weights(Forecaster.load(run)).items():
        assert torch.equal(held[name], tensor.bfloat16()), name


def test_nothing_of_this_machine_is_told(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    source = find(copy)
    data = source.settings.data.model_copy(update={"source": "/home/somebody/secret/load.csv"})
    settings = source.settings.model_copy(update={"data": data})
    export(type(source)(source.path, source.step, settings, source.facts), tmp_path / "out")
    text = (tmp_path / "out" / "config.json").read_text()
    assert "load.csv" in text and "secret" not in text


def test_a_mixture_is_exported_and_tells_no_folder(tmp_path: Path) -> None:
    """A network of many series, which takes contexts of any length and any scale of covariates."""
    days = pd.date_range("2024-01-01", periods=120, freq="D")
    table = pd.DataFrame(
        {
            "id": np.repeat(["a", "b", "c"], 120),
            "day": np.tile(days, 3),
            "sales": np.random.default_rng(0).normal(size=360).cumsum(),
            "price": np.random.default_rng(1).normal(20, 3, size=360),
        }
    )
    (tmp_path / "secret").mkdir()
    table.to_csv(tmp_path / "secret" / "shops.csv", index=False)
    mixture = [{"path": str(tmp_path / "secret" / "shops.csv"), "weight": 2.0}]
    changes = {
        **UNSCORED,
        "data.source": mixture,
        "data.targets": ["sales"],
        "data.covariates": ["price"],
        "data.calendar": ["day_of_week"],
        "data.timezone": None,
        "data.rows": None,
        "data.context_length": 32,
        "data.prediction_length": 8,
        "train.steps": 1,
    }
    ranks.run(train_rank, 1, tmp_path / "run", changes)
    export(find(tmp_path / "run"), tmp_path / "out")
    text = (tmp_path / "out" / "config.json").read_text()
    assert "shops.csv" in text and "secret" not in text
    names = "day_of_week (sin), day_of_week (cos), price"
    assert f"is [B, 40, 3]: {names}" in (tmp_path / "out" / "README.md").read_text()

    forecaster = Forecaster.load(tmp_path / "out")
    assert forecaster.facts.known == ("price",)
    context, covariates = np.random.default_rng(2).normal(size=(2, 32, 1)), np.zeros((2, 40, 3))
    covariates[..., 2] = np.random.default_rng(3).normal(20, 3, size=(2, 40))
    made = forecaster.forecast(context, covariates)
    dearer = covariates * [1, 1, 100] + [0, 0, 7]
    np.testing.assert_allclose(forecaster.forecast(context, dearer), made, rtol=1e-4)
    assert not np.allclose(forecaster.forecast(context, covariates[::-1]), made)
    assert forecaster.forecast(context[:, 12:], covariates[:, 12:]).shape == (2, 8, 1)
    for length in (0, 33):
        with pytest.raises(UserError, match=r"context: expected \[B, 1 to 32, 1\], got"):
            forecaster.forecast(np.ones((2, length, 1)), np.zeros((2, length + 8, 3)))


def test_an_old_folder_is_not_written_over(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").touch()
    with pytest.raises(UserError, match="holds something already; choose another folder"):
        export(find(run), tmp_path / "out")
    assert [f.name for f in tmp_path.rglob("*")] == ["out", "thesis.tex"]


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda out: (out / "model.safetensors").unlink(), "model.safetensors: No such file"),
        (
            lambda out: (out / "model.safetensors").write_bytes(
                (out / "model.safetensors").read_bytes()[:-9]
            ),
            "model.safetensors does not match its sum",
        ),
        (lambda out: (out / "config.json").write_text("{"), "is no export: config.json"),
        (lambda out: (out / "config.json").write_text("[" * 10**5), "is no export: config.json"),
        (lambda out: (out / "config.json").write_text("{}"), "of something else than Forescale"),
        (lambda out: edit(out, format=9), "has format 9; this version reads"),
        (lambda out: edit(out, step=-3), "does not say what it holds: config.json: step"),
        (lambda out: edit(out, buffers=5), "does not say what it holds: config.json: buffers"),
        (lambda out: edit(out, files={}), "does not say what it holds: config.json: files"),
        (
            lambda out: edit(out, files={"../../etc/passwd.safetensors": [1, "x"]}),
            "does not say what it holds: config.json: files",
        ),
        (lambda out: edit(out, "series", mean=[1.0]), "of mean cannot be read here: expected 2"),
        (lambda out: edit(out, "series", deviation=[0.0, 1.0]), "deviation"),
        (
            lambda out: edit(out, "settings", model={"d_model": 10**6, "nhead": 4}),
            "of another model",
        ),
        (lambda out: edit(out, "settings", modell={}), "modell cannot be read here"),
    ],
)
def test_what_is_broken_is_refused(run: Path, tmp_path: Path, harm: Any, message: str) -> None:
    export(find(run), tmp_path / "out")
    harm(tmp_path / "out")
    with pytest.raises(UserError, match=message):
        Forecaster.load(tmp_path / "out")


def edit(out: Path, *section: str, **changes: Any) -> None:
    content = json.loads((out / "config.json").read_text())
    part = content
    for key in section:
        part = part[key]
    part |= changes
    (out / "config.json").write_text(json.dumps(content))


def test_a_path_without_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a run folder nor a checkpoint nor an export"):
        Forecaster.load(tmp_path)


def test_a_path_near_a_run_names_it(run: Path) -> None:
    with pytest.raises(UserError, match=f"it holds runs: name one of .*{run.name}"):
        Forecaster.load(run.parent)
    for part in ("config.yaml", "checkpoints", "checkpoints/latest"):
        with pytest.raises(UserError, match=rf"a part of a run: name {run}, or one of its check"):
            Forecaster.load(run / part)


def test_a_configuration_names_the_run_that_it_would_have_by_default(tmp_path: Path) -> None:
    (tmp_path / "load.yaml").write_text("train: {steps: 2}")
    with pytest.raises(UserError, match=r"trained with it, such as runs/load$"):
        Forecaster.load(tmp_path / "load.yaml")


def test_a_damaged_newest_checkpoint_is_told_and_the_one_before_used(
    run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    copy = shutil.copytree(run, tmp_path / "run")
    file = copy / "checkpoints" / "step-00000003" / "__1_0.distcp"
    content = bytearray(file.read_bytes())
    content[99] ^= 1
    file.write_bytes(content)
    with caplog.at_level(logging.WARNING, "forescale"):
        assert Forecaster.load(copy).step == 2
    assert "does not match its sum; step-00000002 is used" in caplog.text
    with pytest.raises(UserError, match="is damaged"):
        Forecaster.load(copy / "checkpoints" / "step-00000003")


def test_files_are_filled_in_order() -> None:
    sizes = {"a": 4, "b": 5, "c": 20, "d": 1, "e": 9}
    assert split_into_files(sizes, 10) == [["a", "b"], ["c"], ["d", "e"]]


def test_exports_do_not_go_into_checkpoints(run: Path) -> None:
    with pytest.raises(UserError, match="lies in a checkpoint, and would go with it"):
        export(find(run), run / "checkpoints" / "step-00000003" / "out")


def test_an_export_describes_itself(run: Path, tmp_path: Path) -> None:
    export(find(run), tmp_path / "forecaster")
    card = (tmp_path / "forecaster" / "README.md").read_text()
    assert card.startswith("---\nlibrary_name: forescale\npipeline_tag: time-series-forecasting\n")
    assert "It forecasts 32 points of\nDemand, Temperature from 96." in card
    assert Export(tmp_path / "forecaster").description()["model_type"] == "forescale"
    assert "source | series |" in card and "last on pipeline 2 x data 1 x tensor 2 " in card
    assert (
        f"torch {torch.__version__}" in card and "| Forescale | " in card and str(run) not in card
    )


@pytest.mark.parametrize(
    ("changes", "is_told"),
    [({}, True), ({"step": 2}, False), ({"scores": {"Forescale": 1}}, False), (None, False)],
)
def test_a_model_card_tells_the_scores_of_these_weights_alone(
    run: Path, tmp_path: Path, changes: dict[str, Any] | None, is_told: bool
) -> None:
    """Not those of another step, nor what is no record of scores."""
    copy = shutil.copytree(run, tmp_path / "run")
    scores = {"Forescale": {"mae": 0.25, "mase": None}, "seasonal | naive": {"mae": 0.5}}
    found = {"step": 3, "split": "test", "windows": 1234, "units": "the source's units"}
    text = "spoiled" if changes is None else json.dumps(found | {"scores": scores} | changes)
    (copy / "evaluation.json").write_text(text)
    export(find(copy), tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    table = "| forecast | MAE | MASE |\n| --- | --- | --- |\n| Forescale | 0.2500 |  |\n"
    told = (
        f"On 1,234 test windows, errors in the source's units:\n\n{table}| seasonal   naive | 0.5"
    )
    assert (told in card) is is_told and ("## Scores" in card) is is_told
