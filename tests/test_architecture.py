"""Imports point one way, light modules stay light, and no file outgrows its room."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

from esm_pipeline.tasks import COMMANDS

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "esm_pipeline"
LINES = 500

ERRORS = {"errors"}
PLUMBING = ERRORS | {
    "arrays",
    "files",
    "footprint",
    "json_files",
    "known_models",
    "nucleotides",
    "version",
}
PROCESS = {"locks", "interruption"}
LIBRARY = PLUMBING | {"structure", "settings", "parsers", "flags", "formats", "model", "data"}
TASKS = ("embed", "classify", "fold", "score")
COMMON = LIBRARY | PROCESS | {"tasks.common"}
ALLOWED = {
    "errors": set(),
    "arrays": set(),
    "footprint": set(),
    "known_models": set(),
    "nucleotides": {"arrays"},
    "data": set(),
    "version": set(),
    "files": ERRORS,
    "json_files": ERRORS,
    "locks": {"errors", "files"},
    "interruption": {"files", "locks"},
    "structure": ERRORS | {"arrays"},
    "settings": ERRORS | {"json_files", "known_models"},
    "parsers": set(),
    "flags": ERRORS | {"parsers", "settings"},
    "formats": PLUMBING | {"structure", "settings"},
    "model": PLUMBING | {"structure", "data"},
    "tasks": set(),
    "tasks.common": LIBRARY | PROCESS,
    **{f"tasks.{task}": COMMON for task in TASKS},
    "tasks.run": COMMON | {"", "tasks", *(f"tasks.{task}" for task in TASKS)},
    "cli": ERRORS | PROCESS | {"parsers", "tasks", "model", "version"},
    "__main__": {"cli"},
    "": {"errors", "version", "formats", "model", "data", *(f"tasks.{task}" for task in TASKS)},
}
"""Rooms of the package (its `__init__` is '') and those that each may import from, besides itself.

The package itself has the names that users import, functions of tasks among them: of its own
modules, only the command line and the reports of runs import it. `tasks` is the registry of
commands, which names their modules and imports none by itself.
"""


def room(module: str) -> str:
    """`esm_pipeline.formats.fasta` -> `formats`; each folder of `tasks` is a room of its own."""
    parts = module.split(".")[1:]
    depth = 2 if parts[:1] == ["tasks"] and (PACKAGE / Path(*parts[:2])).is_dir() else 1
    return ".".join(parts[:depth])


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


def modules_of(source: str) -> Iterator[tuple[str, str]]:
    """(module, name) of each import from the package itself; the name is '' for a whole module."""
    for module, name in imports(source):
        if module.split(".")[0] != "esm_pipeline":
            continue
        path = PACKAGE.parent.joinpath(*module.split("."), name or "_")
        is_module = path.with_suffix(".py").exists() or path.is_dir()
        yield (f"{module}.{name}", "") if is_module else (module, name)


def trespasses(module: str, source: str) -> list[str]:
    """Imports of `source`, the text of `module`, that point the wrong way."""
    own = room(module)
    return [
        f"{module} imports {name or target} from {room(target) or 'the package'}"
        for target, name in modules_of(source)
        if room(target) != own and room(target) not in ALLOWED[own]
    ]


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
        ("esm_pipeline.model.encoder", "from esm_pipeline.formats.results import writer"),
        ("esm_pipeline.model.folding.esmfold", "from esm_pipeline.formats.fasta import read_fasta"),
        ("esm_pipeline.model.folding.structures", "from esm_pipeline import tasks"),
        ("esm_pipeline.tasks.common.plan", "from esm_pipeline.tasks.embed import command"),
        ("esm_pipeline.tasks.embed.command", "from esm_pipeline.tasks.score import split"),
        ("esm_pipeline.settings", "from esm_pipeline.tasks import COMMANDS"),
        ("esm_pipeline.tasks.embed.command", "from esm_pipeline.cli import main"),
        ("esm_pipeline.tasks.embed.function", "from esm_pipeline import open_results"),
    ],
)
def test_a_wrong_import_is_seen(module, line):
    assert trespasses(module, line)


MODEL_ORDER = (
    {""},
    {"auto"},
    {"inference"},
    {"folding"},
    {"heads"},
    {"esm"},
    {"base"},
    {"encoder"},
    {"decoder", "pruning"},
    {"layer"},
    {"explicit_attention", "arguments"},
    {"attention", "relative_positions", "decoder_inputs", "contacts", "losses", "vocabulary"},
    {"tokenizer", "checkpoints.loading", "checkpoints.saving", "checkpoints.weights"},
    {"checkpoints.config_check"},
    {"config"},
    {"checkpoints", "folding.config", "labels", "pruned_heads", "module_utils"},
    {"alphabet", "bounds", "layout", "linears", "outputs", "rotary"},
)
"""Modules and folders below `esm_pipeline.model` (its `__init__` is ''), the highest first.

Each imports from lower groups only, or from its own folder in the same group. A folder stands for
all its modules but those named themselves.
"""

PLACES = {name: place for place, group in enumerate(MODEL_ORDER) for name in group}


def model_part(module: str) -> str:
    """`esm_pipeline.model.folding.trunk` -> `folding`, the name in `MODEL_ORDER`."""
    parts = module.split(".")[2:]
    whole = ".".join(parts)
    return whole if whole in PLACES else parts[0]


def upward(module: str, source: str) -> list[str]:
    """Imports of `source`, the text of a `module` of the model, that do not point downwards."""
    own = model_part(module)
    found = []
    for target in {target for target, _ in modules_of(source) if room(target) == "model"}:
        part = model_part(target)
        same = PLACES[part] == PLACES[own] and part.split(".")[0] == own.split(".")[0]
        if PLACES[part] <= PLACES[own] and not same:
            found.append(f"{module} imports {target}")
    return found


MODEL_FILES = [path for path in FILES if room(module_name(path)) == "model"]


def test_every_part_of_the_model_has_its_place():
    assert {model_part(module_name(path)) for path in MODEL_FILES} == set(PLACES)


@pytest.mark.parametrize("path", MODEL_FILES, ids=module_name)
def test_imports_of_the_model_point_down(path):
    assert upward(module_name(path), path.read_text()) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("esm_pipeline.model.layer", "from esm_pipeline.model.encoder import EsmEncoder"),
        ("esm_pipeline.model.attention", "from esm_pipeline.model.losses import token_loss"),
        ("esm_pipeline.model.config", "def f():\n    import esm_pipeline.model.folding.trunk"),
        ("esm_pipeline.model.folding.config", "from esm_pipeline.model.config import EsmConfig"),
        ("esm_pipeline.model.folding.trunk", "from esm_pipeline.model.inference import int8"),
        ("esm_pipeline.model.inference.batching", "from esm_pipeline.model import EsmModel"),
    ],
)
def test_an_upward_import_is_seen(module, line):
    assert upward(module, line)


SNAKEFILES = ("Snakefile", "workflow/Snakefile")


WORKFLOW = {"errors", "flags", "settings", "settings.models", "settings.result_names"}
WORKFLOW |= {"formats.bundles", "formats.variant_bundles"}
WORKFLOW |= {f"tasks.{task}.work" for task in TASKS}
"""What the rules import: settings, and what a job asks for. Each job reads them: no torch."""


def test_workflow_imports_only_what_it_needs():
    found = set()
    rules = (ROOT / "workflow" / "rules").glob("*.smk")
    for path in [*(ROOT / name for name in SNAKEFILES), *rules]:
        for line in path.read_text().splitlines():
            words = line.split()
            if words[:1] in (["from"], ["import"]) and words[1].startswith("esm_pipeline"):
                found.add(words[1].removeprefix("esm_pipeline."))
    assert found == WORKFLOW


@pytest.mark.parametrize("name", sorted(WORKFLOW))
def test_what_the_workflow_imports_is_light(name):
    assert loaded_by(f"import esm_pipeline.{name}") == set()


def graph() -> dict[str, set[str]]:
    """The modules that each module of the package imports, wherever in its text it does."""
    names = {module_name(path) for path in FILES}
    return {
        module_name(path): {target for target, _ in modules_of(path.read_text())} & names
        for path in FILES
    }


def circle(arrows: dict[str, set[str]]) -> list[str]:
    """Modules that import each other in a circle, if any do."""
    try:
        TopologicalSorter(arrows).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other():
    assert circle(graph()) == []


def test_a_circle_is_seen():
    assert set(circle({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}})) == {"a", "b", "c"}


INTERFACE = {"add_arguments", "outputs", "run", "check_model", "aggregate", "main", "__all__"}
INTERFACE |= {"SUFFIX", "MODEL_SETTINGS", "EXAMPLES"}
"""What every module of a command may define: see `esm_pipeline.tasks`."""


def definitions(source: str) -> Iterator[tuple[str, str]]:
    """(name, value) of each top-level name; a function or class has itself as its value."""
    for node in ast.parse(source).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            if "overload" not in map(ast.unparse, node.decorator_list):
                yield node.name, ast.unparse(node)
        elif isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            parts = [part for target in targets for part in getattr(target, "elts", [target])]
            yield from ((n.id, ast.unparse(node.value)) for n in parts if isinstance(n, ast.Name))


def ambiguous(sources: Iterable[str]) -> list[str]:
    """Top-level names with different meanings; letters, such as those of types, are no names."""
    values: dict[str, set[str]] = {}
    for source in sources:
        for name, value in definitions(source):
            values.setdefault(name, set()).add(value)
    return sorted(
        name
        for name, found in values.items()
        if len(found) > 1 and len(name) > 1 and name not in INTERFACE
    )


def test_a_name_means_one_thing_in_the_whole_package():
    assert ambiguous(path.read_text() for path in FILES) == []


def test_a_second_meaning_is_seen():
    assert ambiguous(["def told(a): ...", "told = 1", "M = 1", "run = 2"]) == ["told"]
    assert ambiguous(["M = 1", "M = 2", "SIZE = 3", "SIZE = 3"]) == []
    assert ambiguous(["@overload\ndef told(a): ...\ndef told(b): ...", "told = 1"]) == ["told"]
    assert ambiguous(["@overload\ndef told(a): ...\ndef told(b): ..."]) == []


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
        "esm_pipeline.tasks.run.shard",
    ]
    return light + [module_name(path) for path in FILES if room(module_name(path)) == "formats"]


def test_settings_formats_and_shard_load_nothing_heavy():
    statement = "\n".join(f"import {module}" for module in light_modules())
    assert loaded_by(statement) == set()
    assert loaded_by(f"{statement}\nimport esm_pipeline.model") == {"torch"}


def test_no_command_loads_torch_before_it_needs_it():
    modules = [f"import esm_pipeline.tasks.{command.module}" for command in COMMANDS.values()]
    assert "torch" not in loaded_by("\n".join(modules))


@pytest.mark.parametrize("folder", ["esm_pipeline", "tests", "workflow"])
def test_no_file_outgrows_its_room(folder):
    files = [path for end in ("*.py", "*.smk") for path in (ROOT / folder).rglob(end)]
    assert files
    assert [str(path) for path in files if len(path.read_text().splitlines()) > LINES] == []


@pytest.mark.parametrize("name", SNAKEFILES)
def test_snakefile_is_short(name):
    assert len((ROOT / name).read_text().splitlines()) < 60
