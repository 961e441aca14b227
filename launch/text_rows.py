"""What is known of a thing, as rows of text: a name and a value each."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table


def print_rows(rows: dict[str, str]) -> None:
    """Print rows below each other, the names aligned."""
    table = Table.grid(padding=(0, 2))
    for name, value in rows.items():
        table.add_row(name, value)
    Console(width=100).print(table)
