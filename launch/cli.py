"""The command line: `forescale SUBCOMMAND`. Each subcommand imports what it needs when it runs."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import click

from launch.options import (
    COUNT,
    explain_option,
    force_option,
    json_option,
    log_options,
    resume_option,
    run_dir_option,
)
from launch.other_words import Commands
from model.errors import ReportedElsewhereError, RunFailedError, UserError

HELP = {"help_option_names": ["-h", "--help"]}


@click.group(context_settings=HELP, cls=Commands)
@click.version_option(package_name="forescale")
def forescale() -> None:
    """Train large transformers for time series, on any layout of ranks with the same result."""


@forescale.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@run_dir_option
@resume_option
@click.option("--ranks", type=COUNT, help="Start this many local ranks.")
@click.option("--profile", metavar="FIRST-LAST", help="Trace these steps, and show their time.")
@click.option("--dry-run", is_flag=True, help="Check all, say what would be done, write no run.")
@log_options
def train(
    config: Path,
    overrides: Sequence[str],
    run_dir: Path | None,
    resume: str,
    ranks: int | None,
    profile: str | None,
    dry_run: bool,
) -> None:
    """Train CONFIG, a YAML file, or go on where it stopped.

    KEY=VALUE changes a setting, as in train.steps=100; `forescale keys` lists them.
    """
    from launch.start import start, try_out

    options: dict[str, Any] = {"run_dir": run_dir, "resume": resume, "ranks": ranks}
    options["profile"] = profile
    if dry_run:
        try_out(config, overrides, **options)
    else:
        sys.exit(start(config, overrides, **options))


@forescale.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[data.KEY=VALUE]...")
@click.option(
    "--split",
    type=click.Choice(["train", "validation", "test", "held_out"]),
    default="test",
    show_default=True,
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@click.option(
    "--report", type=click.Path(path_type=Path), metavar="HTML", help="Write a report, one file."
)
@click.option("--ridge", is_flag=True, help="Score a ridge regression on the training part, too.")
@click.option(
    "--statsforecast", metavar="MODELS", help="Score its models, too, as AutoETS,AutoTheta."
)
@force_option
@log_options
def evaluate(run: Path, overrides: Sequence[str], **options: Any) -> None:
    """Score RUN's weights on a split, beside naive forecasts.

    These are its newest checkpoint's, or those that checkpoint.best keeps, on the windows that
    data.score_every chooses. RUN may be a
    checkpoint or an export too. data.KEY=VALUE changes a setting of the series, as in
    data.source=other.csv.
    """
    from launch.evaluate import score

    score(run, overrides, **options)


@forescale.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("settings", nargs=-1, metavar="[data.KEY=VALUE]...")
@click.option("--input", "source", required=True, metavar="FILE", help="The series.")
@click.option(
    "--output",
    "out",
    required=True,
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="A .csv, .parquet, .feather or .arrow to write.",
)
@click.option("--horizon", type=COUNT, help="Points to forecast.  [default: as were trained]")
@click.option("--quantiles", metavar="LEVELS", help="As 0.1,0.5,0.9.  [default: as were trained]")
@click.option("--future", metavar="FILE", help="The columns known in advance of these points.")
@click.option(
    "--plot", type=click.Path(path_type=Path), metavar="PNG", help="Draw the first series."
)
@force_option
@log_options
def forecast(run: Path, settings: Sequence[str], **options: Any) -> None:
    """Forecast what comes after the end of each series of a file, by RUN's weights.

    RUN may be a checkpoint or an export too. The file, a folder of files or a prepared set, is read
    as in training; data.KEY=VALUE says what is otherwise, as in data.id_column=store.
    """
    from launch.forecast import forecast as write

    write(run, settings, **options)


@forescale.command()
@click.argument("name")
@click.argument("data", type=click.Path(path_type=Path))
@click.argument("run", type=click.Path(path_type=Path))
@click.argument("settings", nargs=-1, metavar="[data.KEY=VALUE]...")
@click.option("--horizon", type=COUNT, help="Points to forecast.  [default: as were trained]")
@json_option
@log_options
def benchmark(name: str, data: Path, run: Path, settings: Sequence[str], **options: Any) -> None:
    """Score RUN's weights by the literature's protocol NAME on DATA.

    NAME is etth1, etth2, ettm1, ettm2, weather, electricity, traffic or exchange, and DATA that
    table; or NAME is m4_yearly, m4_quarterly, m4_monthly, m4_weekly, m4_daily or m4_hourly, and
    DATA the folder of M4's files. RUN may be a checkpoint or an export too. data.KEY=VALUE says how
    DATA is read, as in data.on_error=skip.
    """
    from launch.benchmark import benchmark as score

    score(name, data, run, settings, **options)


@forescale.command()
@click.argument("source", type=click.Path(path_type=Path))
@click.argument("out", type=click.Path(path_type=Path))
@click.option(
    "--precision",
    type=click.Choice(["fp32", "bf16"]),
    default="fp32",
    show_default=True,
    help="Of the weights that are written.",
)
@log_options
def export(source: Path, out: Path, precision: Literal["fp32", "bf16"]) -> None:
    """Write weights to a folder for others to use, or a graph to a file.

    They are those of SOURCE, a run or a checkpoint, and go to the new folder OUT. If OUT ends with
    .onnx or .pt2 it is a file with all that a forecast takes, for ONNX runtimes or torch.export.
    """
    from launch.export import export as write

    write(source, out, precision=precision)


@forescale.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read every byte against its sum.")
@click.option(
    "--picture", type=click.Path(path_type=Path), help="Draw a set of series into this PNG file."
)
@force_option
@json_option
@log_options
def show(path: Path, verify: bool, picture: Path | None, force: bool, as_json: bool) -> None:
    """Tell what a run folder, a checkpoint, an export or a set of series holds."""
    from launch.show import show_path

    show_path(path, verify=verify, as_json=as_json, picture=picture, force=force)


@forescale.command()
@click.argument("arguments", nargs=-1, required=True, metavar="SOURCE... OUT [data.KEY=VALUE]...")
@click.option(
    "--on-error",
    type=click.Choice(["refuse", "skip"]),
    help="What cannot be read ends the command, or is left out and counted.  [default: refuse]",
)
@click.option(
    "--then",
    multiple=True,
    metavar="SOURCE",
    help="A source whose series continue those of the same names, such as a test file.",
)
@log_options
def prepare(arguments: Sequence[str], on_error: str | None, then: Sequence[str]) -> None:
    """Write series from SOURCE, files or folders, as a set into the new folder OUT.

    Sources are CSV, TSV, Parquet, Feather, Arrow, JSON lines or .tsf, a row for each point or for
    each series. data.KEY=VALUE says how they are read, as in data.id_column=store; `forescale keys
    data` lists the keys.
    """
    from launch.prepare_data import prepare as write

    write(arguments, on_error, then)


@forescale.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--world", type=COUNT, required=True, help="Ranks.")
@click.option("--node", type=COUNT, default=8, show_default=True, help="Ranks a node.")
@run_dir_option
@resume_option
@json_option
@explain_option
@log_options
def plan(
    config: Path,
    overrides: Sequence[str],
    world: int,
    node: int,
    run_dir: Path | None,
    resume: str,
    as_json: bool,
    explain: bool,
) -> None:
    """Explain what `train` would do on a number of ranks.

    A CONFIG that `train` would refuse is refused.
    """
    from launch.plan import print_plan

    print_plan(
        config,
        overrides,
        world=world,
        node=node,
        run_dir=run_dir,
        resume=resume,
        as_json=as_json,
        with_text=explain,
    )


@forescale.command()
@click.argument("arguments", nargs=-1, required=True, metavar="SOURCE [CONFIG] [data.KEY=VALUE]...")
@log_options
def init(arguments: Sequence[str]) -> None:
    """Write a first configuration for a CSV or Parquet file, or whatever `prepare` reads or wrote.

    It looks at SOURCE for timestamps, series, columns to forecast and their rhythm, and writes
    CONFIG, by default NAME_OF_SOURCE.yaml, which trains as it is. data.KEY=VALUE says how SOURCE is
    read, as in data.id_column=store.
    """
    from launch.first_config import write_config

    write_config(arguments)


@forescale.command()
@click.argument("section", required=False)
@json_option
def keys(section: str | None, as_json: bool) -> None:
    """List the keys of a configuration: type, default, meaning.

    SECTION is one such as `train`, or a key such as `train.steps`, and gives the whole text.
    """
    from launch.keys import print_keys

    print_keys(section, as_json=as_json)


@forescale.command()
def doctor() -> None:
    """Report what this machine has and which parts work there.

    The report is made to be pasted into a bug report.
    """
    from launch.doctor import report

    report()


@forescale.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tasks", type=COUNT, default=1, help="Ranks this node will have.")
@json_option
@explain_option
def preflight(run: Path, tasks: int, as_json: bool, explain: bool) -> None:
    """Tell whether this node is fit to train RUN.

    It is started on all nodes at once, by one task on each.
    """
    from launch.preflight import check

    sys.exit(0 if check(run, tasks, as_json=as_json, with_text=explain) else 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an exception of `model.errors` is one line on stderr and its code."""
    given = sys.argv[1:] if arguments is None else arguments
    # Launchers put --local_rank first, before a subcommand too; LOCAL_RANK says the same.
    given = [word for word in given if not word.startswith(("--local_rank=", "--local-rank="))]
    try:
        forescale.main(given or ["--help"], standalone_mode=False)
    except ReportedElsewhereError as error:
        sys.exit(error.exit_code)
    except (UserError, RunFailedError) as error:
        _fail(str(error), error.exit_code)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "forescale"
        sentence = error.format_message()
        if isinstance(error, click.NoSuchOption) and where.endswith((" train", " plan")):
            sentence += " Settings are given as key=value, such as train.steps=100."
        _fail(f"{sentence} (see {where} --help)", error.exit_code)
    except click.Abort:
        _fail("interrupted", 128 + signal.SIGINT)


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"forescale: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(code)
