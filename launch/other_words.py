"""Commands by the words of other tools: what somebody means who types `forescale predict`."""

from __future__ import annotations

from collections.abc import Collection

import click

COMMANDS = {
    "train": ("fit", "run", "pretrain", "finetune", "fine-tune", "resume", "continue", "launch"),
    "evaluate": ("test", "score", "eval", "backtest", "metrics"),
    "benchmark": ("leaderboard", "ltsf", "m4"),
    "forecast": ("predict", "infer", "inference", "generate"),
    "show": ("info", "inspect", "status", "describe", "summary", "list", "ls", "verify"),
    "plan": ("check", "lint", "estimate", "memory", "layout", "dry-run"),
    "export": ("convert", "save", "package", "publish", "push"),
    "prepare": ("import", "ingest", "preprocess", "data", "index", "tokenize"),
    "keys": ("config", "settings", "options", "parameters", "args", "schema"),
    "doctor": ("env", "environment", "diagnose", "report", "collect-env"),
    "init": ("new", "create", "template", "configure", "setup", "quickstart"),
}
"""Command -> words that other tools have for it."""

HINTS = {
    "validate": "`evaluate RUN --split validation` scores a run, `train CONFIG --dry-run` checks a "
    "configuration",
    "tensorboard": "it is a command of its own: tensorboard --logdir RUN/tensorboard",
    "help": "`forescale --help` lists the commands, `forescale COMMAND --help` explains one",
    "version": "`forescale --version` prints it",
}
"""Word for what is no command -> the way there."""


def meant(word: str, commands: Collection[str]) -> str | None:
    """Return in words which of `commands` does what `word` means elsewhere."""
    command = next((name for name, words in COMMANDS.items() if word in words), word)
    if command in commands:
        return f"that is `forescale {command}`"
    return HINTS.get(command)


class Commands(click.Group):
    """A group of commands that knows the words of other tools."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Return the command that `args` begin with. Raises click.UsageError where it is none."""
        hint = None if args[0] in self.commands else meant(args[0].lower(), self.commands)
        if hint is not None:
            ctx.fail(f"No such command '{args[0]}': {hint}")
        return super().resolve_command(ctx, args)
