"""`forescale evaluate --report`: one page that needs nothing else."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pandas as pd
import pytest

from launch.cli import main
from tests import ranks
from tests.settings import train_rank
from tests.trainer.forecast.test_future import MANY, waves
from trainer.data import Split
from trainer.forecast.expert_load import expert_load
from trainer.forecast.forecaster import Forecaster

NASTY = "<script>alert('$1_$')</script>"


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run of a mixture of experts on 24 series of two intervals."""
    folder = tmp_path_factory.mktemp("report")
    names = [NASTY, *(f"shop {n}" for n in range(1, 24))]
    frames = [
        pd.DataFrame(
            {
                "shop": name,
                "time": pd.date_range("2024-01-01", periods=200 + n, freq="h" if n % 3 else "D"),
                "sales": waves(200 + n, level=10.0 * n),
            }
        )
        for n, name in enumerate(names)
    ]
    pd.concat(frames).to_csv(folder / "shops.csv", index=False)
    changes = {
        "model.use_moe": True,
        "model.num_experts": 4,
        "model.top_k": 1,
        "model.balance_rate": 0.01,
        "logging.validate_every": 1,
        "data.split": [0.6, 0.2, 0.2],
        "data.score_every": 1,
        "data.source": str(folder / "shops.csv"),
    }
    ranks.run(train_rank, 1, folder / "run", {**MANY, **changes})
    return folder / "run"


class Page(HTMLParser):
    """What a page loads, and its pictures."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.loaded: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loaded += [value or "" for name, value in attrs if name in {"src", "href", "data"}]

    def pictures(self) -> list[str]:
        """Return the SVG of each picture. Raises where one is none."""
        start = "data:image/svg+xml;base64,"
        texts = [base64.b64decode(one.removeprefix(start)).decode() for one in self.loaded]
        for text in texts:
            assert ElementTree.fromstring(text).tag.endswith("svg")
        return texts


def test_a_report_is_one_page_with_all_that_is_known(run: Path, tmp_path: Path) -> None:
    file = tmp_path / "report.html"
    main(["evaluate", str(run), "--report", str(file)])
    text = file.read_text()
    page = Page(text)
    assert all(one.startswith("data:image/svg+xml;base64,") for one in page.loaded)
    assert not {"script", "link", "iframe"} & set(page.tags) and "url(" not in text
    assert NASTY not in text and "&lt;script&gt;" in text
    assert len(text) < 2_000_000
    titles = re.findall("<h2>(.*?)</h2>", text)
    assert titles == [
        "Scores",
        "Errors over the horizon",
        "Calibration",
        "Windows of the lowest error",
        "Windows of the highest error",
        "Series",
        "Load of the experts",
        "Training",
    ]
    pictures = page.pictures()
    assert "points ahead" in pictures[0] and "80% interval" in pictures[1]
    assert pictures[3].count("interval") == 1 and "expert" in pictures[4]
    assert "CRPS" in text and "95 % of resampled series" in text


def test_a_report_that_is_there_stays(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.html"
    file.write_text("mine")
    for name, words in (
        ("report.html", "is there already"),
        ("report.pdf", "ends with .html"),
        ("none/report.html", "there is no such folder"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(["evaluate", str(run), "--report", str(tmp_path / name)])
        assert f"--report: {tmp_path / name}" in (said := capsys.readouterr().err) and words in said
    assert file.read_text() == "mine"
    main(["evaluate", str(run), "--report", str(file), "--force"])
    assert file.read_text().startswith("<!doctype html>")


def test_the_load_of_experts_is_that_of_the_routers(run: Path) -> None:
    forecaster = Forecaster.load(run)
    load = expert_load(forecaster, forecaster.dataset, Split.TEST)
    assert load is not None and load.intervals == ["h", "D"]
    assert load.share.shape == (len(load.layers), 2, 4)
    np.testing.assert_allclose(load.share.sum(-1), 1)
    routers = [m for m in forecaster.network.modules() if type(m).__name__ == "Router"]
    assert len(routers) == len(load.layers) > 0
    for router in routers:
        router.bias[2] = 100.0  # it wins wherever a token comes from
    load = expert_load(forecaster, forecaster.dataset, Split.TEST)
    assert load is not None
    np.testing.assert_array_equal(load.share[..., 2], 1)


@pytest.mark.parametrize("command", ["evaluate", "show"])
def test_force_without_a_file_is_refused(
    run: Path, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit, match="2"):
        main([command, str(run), "--force"])
    assert "--force: no file is written; name one by --" in capsys.readouterr().err


def test_a_ridge_regression_stands_beside_the_network(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "report.html"
    main(["evaluate", str(run), "--ridge", "--json", "--report", str(file)])
    scores = json.loads(capsys.readouterr().out)["scores"]
    assert scores["ridge regression"]["mae"] < scores["last value"]["mae"]
    assert "ridge regression" in file.read_text()
