"""The command line: `forescale SUBCOMMAND`. Each subcommand imports what it needs when it runs."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, NoReturn

import click

from model.errors import ReportedElsewhereError, RunFailedError, UserError
from trainer.logs.log import VARIABLE

HELP = {"help_option_names": ["-h", "--help"]}

run_dir_option = click.option(
    "--run-dir", type=click.Path(path_type=Path), help="Default: runs/NAME_OF_CONFIG."
)
resume_option = click.option(
    "--resume",
    default="auto",
    show_default=True,
    metavar="auto|never|CHECKPOINT",
    help="Go on from the run folder's newest checkpoint, start anew, or from a given one.",
)
json_option = click.option(
    "--json", "as_json", is_flag=True, help="Print one JSON object on standard output."
)
explain_option = click.option(
    "--explain", is_flag=True, help="With --json: print the sentences too, on stderr."
)


def log_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add --quiet and --verbose, which count more than FORESCALE_LOG, to a command."""

    def option(short: str, name: str, level: str, text: str) -> Callable[..., Any]:
        def choose(context: click.Context, parameter: click.Parameter, chosen: bool) -> None:
            if chosen:
                os.environ[VARIABLE] = level  # the ranks that this process starts inherit it

        return click.option(
            short, name, is_flag=True, expose_value=False, callback=choose, help=text
        )

    quiet = option("-q", "--quiet", "warning", "Show only warnings and errors of the log.")
    verbose = option("-v", "--verbose", "debug", "Show all of the log.")
    return quiet(verbose(command))


@click.group(context_settings=HELP)
@click.version_option(package_name="forescale")
def forescale() -> None:
    """Train large transformers for time series, on any layout of ranks with the same result."""


@forescale.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@run_dir_option
@resume_option
@click.option("--ranks", type=click.IntRange(1), help="Start this many local ranks.")
@log_options
def train(
    config: Path, overrides: Sequence[str], run_dir: Path | None, resume: str, ranks: int | None
) -> None:
    """Train CONFIG, a YAML file; KEY=VALUE changes a setting, as in train.steps=100."""
    from launch.start import start

    sys.exit(start(config, overrides, run_dir=run_dir, resume=resume, ranks=ranks))


@forescale.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option(
    "--split", type=click.Choice(["train", "validation", "test"]), default="test", show_default=True
)
@click.option("--json", "as_json", is_flag=True, help="Print the numbers as JSON.")
@log_options
def evaluate(run: Path, split: str, as_json: bool) -> None:
    """Score RUN's newest checkpoint on the windows of a split, beside naive forecasts.

    RUN may be a checkpoint or an export too.
    """
    from launch.evaluate import score

    score(run, split, as_json=as_json)


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
    """Write the weights of SOURCE, a run or a checkpoint, to the folder OUT for others to use."""
    from launch.output import showing_log
    from trainer.weights.export import export as write
    from trainer.weights.source import find

    with showing_log():
        write(find(source), out, precision=precision)


@forescale.command()
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--verify", is_flag=True, help="Read every byte of checkpoints against its sum.")
@json_option
@log_options
def show(path: Path, verify: bool, as_json: bool) -> None:
    """Tell what a run folder, a checkpoint or an export holds."""
    from launch.show import show_path

    show_path(path, verify=verify, as_json=as_json)


@forescale.command()
@click.argument("config", type=click.Path(path_type=Path))
@click.argument("overrides", nargs=-1, metavar="[KEY=VALUE]...")
@click.option("--world", type=click.IntRange(1), required=True, help="Ranks.")
@click.option("--node", type=click.IntRange(1), default=8, show_default=True, help="Ranks a node.")
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
    """Explain what `train` would do with CONFIG on a number of ranks, or refuse it as it would."""
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
def doctor() -> None:
    """Report what this machine has and which parts work, to paste into a bug report."""
    from launch.doctor import report

    report()


@forescale.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--tasks", type=click.IntRange(1), default=1, help="Ranks this node will have.")
@json_option
@explain_option
def preflight(run: Path, tasks: int, as_json: bool, explain: bool) -> None:
    """Tell whether this node is fit to train RUN, one task for each node asking at once."""
    from launch.preflight import check

    sys.exit(0 if check(run, tasks, as_json=as_json, with_text=explain) else 1)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line; an exception of `model.errors` is one line on stderr and its code."""
    given = sys.argv[1:] if arguments is None else arguments
    # Launchers put --local_rank first, before a subcommand too; LOCAL_RANK says the same.
    given = [word for word in given if not word.startswith(("--local_rank=", "--local-rank="))]
    try:
        forescale.main(given, standalone_mode=False)
    except ReportedElsewhereError as error:
        sys.exit(error.exit_code)
    except (UserError, RunFailedError) as error:
        _fail(str(error), error.exit_code)
    except click.UsageError as error:
        where = error.ctx.command_path if error.ctx else "forescale"
        _fail(f"{error.format_message()} (see {where} --help)", error.exit_code)
    except click.Abort:
        _fail("interrupted", 128 + signal.SIGINT)


def _fail(sentence: str, code: int) -> NoReturn:
    print(f"forescale: {' '.join(sentence.split())}", file=sys.stderr)
    sys.exit(code)
