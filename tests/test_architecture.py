"""The architecture keeps the rules that import-linter cannot express.

Who may import whom is written once, in pyproject.toml, and checked by `make check`.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "parallel", "trainer", "launch")
MAX_LINES, MAX_ENTRIES = 350, 15


def sources(*packages: str) -> list[Path]:
    return [file for package in packages for file in sorted((ROOT / package).rglob("*.py"))]


def imports(file: Path) -> set[str]:
    """Modules imported anywhere in a file, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_the_model_knows_no_process_group() -> None:
    """import-linter sees torch, and not its parts."""
    for file in sources("model"):
        wrong = {name for name in imports(file) if name.startswith("torch.distributed")}
        assert not wrong, f"{file} imports {wrong}"


def test_no_file_is_called_like_a_standard_module() -> None:
    """A script's folder comes first on Python's path: launch/inspect.py would break torch."""
    for file in sources(*PACKAGES):
        assert file.stem not in sys.stdlib_module_names, file


def test_files_and_folders_stay_readable() -> None:
    for file in sources(*PACKAGES, "tests", "benchmarks"):
        text = file.read_text()
        assert len(text.splitlines()) <= MAX_LINES, f"{file} holds more than one idea"
        assert "# fmt: " + "skip" not in text, f"{file}: the formatter is trusted"
    entries = [path for path in (ROOT / "trainer").iterdir() if path.name != "__pycache__"]
    assert len(entries) <= MAX_ENTRIES


def test_settings_and_data_are_checked_without_torch() -> None:
    code = (
        "import sys, launch.cli, trainer.config, trainer.prepare; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
