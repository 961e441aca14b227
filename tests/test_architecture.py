"""The architecture keeps the rules that import-linter cannot express.

Who may import whom is written once, in pyproject.toml, and checked by `make check`.
"""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = ("model", "parallel", "trainer", "launch")
MAX_LINES, MAX_ENTRIES = 350, 14


def sources(*packages: str) -> list[Path]:
    return [file for package in packages for file in sorted((ROOT / package).rglob("*.py"))]


def rooms(package: Path) -> set[str]:
    """Return the files and folders of a package but those that every package has."""
    entries = [path for path in package.iterdir() if path.name != "py.typed"]
    return {path.stem for path in entries if path.stem[0] != "_"}


def imports(file: Path) -> set[str]:
    """Modules imported anywhere in a file, also inside functions."""
    found = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def part_of(module: str) -> str:
    """A package, or a part of trainer, as the picture in CONTRIBUTING.md has them."""
    package, *rest = module.split(".")
    return rest[0] if package == "trainer" and rest else package


def imported_parts() -> set[tuple[str, str]]:
    """Which part of the picture imports which other one."""
    found = set()
    for file in sources(*PACKAGES):
        here = part_of(".".join(file.relative_to(ROOT).with_suffix("").parts))
        names = {name for name in imports(file) if name.split(".")[0] in PACKAGES}
        found |= {(here, part_of(name)) for name in names}
    return {(a, b) for a, b in found if a != b}


def test_the_picture_in_contributing_is_true() -> None:
    """Each arrow is an import, and each import is an arrow or follows from some."""
    text = (ROOT / "CONTRIBUTING.md").read_text().partition("```mermaid")[2].partition("```")[0]
    arrows = set(re.findall(r"^ *(\w+)(?:\[.*?\])? --> (\w+)", text, re.MULTILINE))
    inside = text.partition("subgraph trainer")[2].partition("end\n")[0]
    parts = set(re.findall(r"\w+(?=\[\")", inside)) - {"trainer"}
    entries = rooms(ROOT / "trainer")
    assert parts == entries
    reached = {(a, b) for a, b in arrows if "trainer" not in (a, b)}
    reached |= {("launch", part) for part in parts} | {(part, "parallel") for part in parts}
    real = imported_parts()
    drawn = {(a, b) for a, b in reached if a in parts and b in parts}
    assert drawn <= real, f"no such imports: {drawn - real}"
    while True:
        further = {(a, d) for a, b in reached for c, d in reached if b == c} - reached
        if not further:
            break
        reached |= further
    assert real <= reached, f"not in the picture: {real - reached}"


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
    assert len(rooms(ROOT / "trainer")) <= MAX_ENTRIES


def test_every_path_in_the_documentation_exists() -> None:
    """Also those of tests that comments name."""
    texts = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("*/README.md")]
    folders = "|".join((*PACKAGES, "tests", "benchmarks", "configs", "slurm", "docs"))
    path = re.compile(rf"(?<![\w/.])((?:\.\./)?(?:{folders})/[\w./-]*\w)")
    for text in (*texts, *sources(*PACKAGES)):
        for name in path.findall(text.read_text()):
            named = (text.parent if name.startswith("..") else ROOT) / name
            is_there = named.exists() or named.stem == "mine"  # a user's
            assert is_there, f"{text.relative_to(ROOT)}: there is no {name}"


def test_settings_and_data_are_checked_without_torch() -> None:
    code = (
        "import sys, launch.cli, trainer.config, trainer.prepare; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
