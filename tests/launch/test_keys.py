"""`forescale keys` lists every key with its type, default and meaning."""

from __future__ import annotations

import json

import pytest

from launch.cli import main
from launch.keys import all_keys, first_sentence
from trainer.config.load import flat
from trainer.config.settings import Settings


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    main(["keys", *arguments])
    return capsys.readouterr().out


def test_all_keys_are_listed_with_their_defaults(capsys: pytest.CaptureFixture[str]) -> None:
    text = said([], capsys)
    defaults = Settings().model_dump()
    for name in flat(defaults):
        assert f"\n{name} = " in f"\n{text}", name
    assert "\ndata.source[].weight = 1.0    (float > 0)\n" in text
    assert "\ndata.source[].synthetic.length = 1024    (int >= 1)\n" in text
    assert "train.steps = 1000    (int >= 1)\n    Optimizer steps of the whole run.\n" in text
    assert "(standard | xformer | flash | frequency)" in text and "Callable" not in text


def test_a_section_has_the_whole_text(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(["parallel"], capsys)
    assert {line.split(".")[0] for line in text.splitlines() if line[0] != " "} == {"parallel"}
    assert "without it they stay until its backward pass" in " ".join(text.split())
    one = said(["data.score_every"], capsys)
    assert one.startswith("data.score_every = null    (int >= 1 | null)\n    Distance")


def test_keys_are_one_object(capsys: pytest.CaptureFixture[str]) -> None:
    known = json.loads(said(["--json"], capsys))
    assert list(known) == list(all_keys())
    assert known["train.beta1"]["type"] == "float >= 0 and < 1"
    assert known["model.init_from"] == {
        "type": "str | null",
        "default": None,
        "description": known["model.init_from"]["description"],
    }
    assert all(key["description"] and key["type"] for key in known.values())
    assert list(json.loads(said(["train.seed", "--json"], capsys))) == ["train.seed"]


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("learning_rate", "did you mean train.learning_rate?"),
        ("train.stepz", "did you mean train.steps?"),
        ("modle", "did you mean model?"),
        ("zzzz", "sections: model, data, parallel"),
    ],
)
def test_an_unknown_key_is_refused(
    word: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["keys", word])
    assert ended.value.code == 2
    assert hint in capsys.readouterr().err


def test_a_sentence_ends_at_its_period() -> None:
    assert first_sentence("Time zone, e.g. Australia/Melbourne. Default: none.") == (
        "Time zone, e.g. Australia/Melbourne."
    )
    assert first_sentence("As in Lan et al. 2019, 1.5 times") == "As in Lan et al. 2019, 1.5 times"
