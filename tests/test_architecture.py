"""Imports point one way, light modules stay light, and no file outgrows its room."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "esm_pipeline"
LINES = 500

FLOOR = {"errors", "files", "json_files", "nucleotides", "residues"}
ALLOWED = {
    "errors": set(),
    "files": {"errors"},
    "json_files": {"errors"},
    "locks": {"errors", "files"},
    "interruption": {"files", "locks"},
    "nucleotides": set(),
    "residues": set(),
    "data": set(),
    "problems": set(),
    "results": set(),
    "samples": {"errors", "results"},
    "sections": {"errors", "problems"},
    "settings": {"errors", "json_files", "problems", "results", "samples", "sections"},
    "formats": {*FLOOR, "settings", "formats"},
    "model": {*FLOOR, "data", "model"},
    "tasks": {
        *FLOOR,
        *("locks", "interruption", "sections", "settings", "results", "formats", "model", "tasks"),
        *("cli", "data", ""),
    },
    "cli": {"errors", "interruption", "locks", "sections", "settings", "tasks", ""},
    "__main__": {"cli"},
    "": {"formats", "model", "tasks"},
}
"""Rooms of the package (its `__init__` is '') and those that each may import from."""

EXCEPTIONS = {"esm_pipeline.model.folding.structures": {"formats"}}
"""Modules that import from more rooms: the reference's folding model writes PDB text itself."""

HELPERS_OF_CLI = {
    "number_of_shards",
    "add_common",
    "add_flags",
    "add_unchanged",
    "exit_code",
    "require_file",
    "section_from",
}
"""What tasks take from `cli`: parsing helpers, never its entry point."""


def room(module: str) -> str:
    """`esm_pipeline.tasks.embed` -> `tasks`."""
    return [*module.split("."), ""][1]


def module_name(path: Path) -> str:
    parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of each import anywhere in `source`, those inside functions included."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield from ((node.module or "", alias.name) for alias in node.names)


def package_imports(source: str) -> Iterator[tuple[str, str]]:
    """(room, name) of each import from the package itself."""
    for module, name in imports(source):
        if module.split(".")[0] == "esm_pipeline":
            submodule = module == "esm_pipeline" and (PACKAGE / name).with_suffix(".py").exists()
            folder = module == "esm_pipeline" and (PACKAGE / name).is_dir()
            yield (name if submodule or folder else room(module)), name


def trespasses(module: str, source: str) -> list[str]:
    """Imports of `source`, the text of `module`, that point the wrong way."""
    allowed = ALLOWED[room(module)] | EXCEPTIONS.get(module, set())
    found = []
    for target, name in package_imports(source):
        if target not in allowed:
            found.append(f"{module} imports {name} from {target or 'the package'}")
        if room(module) == "tasks" and target == "cli" and name not in HELPERS_OF_CLI:
            found.append(f"{module} imports {name} from cli")
    return found


FILES = sorted(PACKAGE.rglob("*.py"))


def test_every_room_has_its_rule():
    rooms = {room(module_name(path)) for path in FILES}
    assert rooms == set(ALLOWED)


@pytest.mark.parametrize("path", FILES, ids=module_name)
def test_imports_point_one_way(path):
    assert trespasses(module_name(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("esm_pipeline.formats.fasta", "from esm_pipeline.model import EsmModel"),
        ("esm_pipeline.formats.fasta", "def f():\n    import esm_pipeline.tasks.embed"),
        ("esm_pipeline.model.encoder", "from esm_pipeline import settings"),
        ("esm_pipeline.model.encoder", "from esm_pipeline.formats import hdf5"),
        ("esm_pipeline.model.folding.esmfold", "from esm_pipeline.formats import structures"),
        ("esm_pipeline.model.folding.structures", "from esm_pipeline import tasks"),
        ("esm_pipeline.settings", "from esm_pipeline.tasks import TASKS"),
        ("esm_pipeline.tasks.embed", "from esm_pipeline.cli import main"),
    ],
)
def test_a_wrong_import_is_seen(module, line):
    assert trespasses(module, line)


SNAKEFILES = ("Snakefile", "workflow/Snakefile")


def test_workflow_imports_only_errors_and_settings():
    found = set()
    rules = (ROOT / "workflow" / "rules").glob("*.smk")
    for path in [*(ROOT / name for name in SNAKEFILES), *rules]:
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]) and words[1].startswith("esm_pipeline"):
                found.add(words[1])
    assert found == {"esm_pipeline.errors", "esm_pipeline.sections", "esm_pipeline.settings"}


HEAVY = ("torch", "transformers", "matplotlib", "pandas", "snakemake")


def loaded_by(statement: str) -> set[str]:
    """Those of the heavy packages that `statement` loads in a fresh interpreter."""
    code = f"import sys\n{statement}\nprint(*[name for name in {HEAVY} if name in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def light_modules() -> list[str]:
    light = [
        "esm_pipeline",
        "esm_pipeline.settings",
        "esm_pipeline.cli",
        "esm_pipeline.tasks.shard",
    ]
    return light + [module_name(path) for path in FILES if room(module_name(path)) == "formats"]


def test_settings_formats_and_shard_load_nothing_heavy():
    statement = "\n".join(f"import {module}" for module in light_modules())
    assert loaded_by(statement) == set()
    assert loaded_by(f"{statement}\nimport esm_pipeline.model") == {"torch"}


@pytest.mark.parametrize("folder", ["esm_pipeline", "tests", "workflow"])
def test_no_file_outgrows_its_room(folder):
    files = [path for end in ("*.py", "*.smk") for path in (ROOT / folder).rglob(end)]
    assert files
    assert [str(path) for path in files if len(path.read_text().splitlines()) > LINES] == []


@pytest.mark.parametrize("name", SNAKEFILES)
def test_snakefile_is_short(name):
    assert len((ROOT / name).read_text().splitlines()) < 60
