"""The house keeps its rules: who may import what, and what files are called."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ROOMS = ("model", "parallel", "trainer", "launch")
MAY_IMPORT_DEEPSPEED = {
    "parallel/deepspeed_adapter.py",
    "parallel/pipeline_parallel.py",
    "trainer/engine/engine.py",
}


def imports(file: Path) -> set[str]:
    """Modules imported anywhere in a file, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def sources(*rooms: str) -> list[Path]:
    return [file for room in rooms for file in sorted((ROOT / room).rglob("*.py"))]


def test_imports_run_one_way() -> None:
    for index, room in enumerate(ROOMS):
        above = ROOMS[index + 1 :]
        for file in sources(room):
            wrong = {name for name in imports(file) if name.split(".")[0] in above}
            assert not wrong, f"{file} imports {wrong}"


def test_the_model_knows_no_process_group() -> None:
    for file in sources("model"):
        wrong = {n for n in imports(file) if n.startswith(("torch.distributed", "deepspeed"))}
        assert not wrong, f"{file} imports {wrong}"


def test_deepspeed_is_imported_in_three_files() -> None:
    users = {
        str(file.relative_to(ROOT))
        for file in sources(*ROOMS)
        if any(name.split(".")[0] == "deepspeed" for name in imports(file))
    }
    assert users == MAY_IMPORT_DEEPSPEED


def test_no_file_is_called_like_a_standard_module() -> None:
    """A script's folder comes first on Python's path: launch/inspect.py would break torch."""
    for file in sources(*ROOMS):
        assert file.stem not in sys.stdlib_module_names, file


def test_settings_and_data_are_checked_without_torch() -> None:
    import subprocess

    code = (
        "import sys, launch.cli, trainer.config, trainer.prepare; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
