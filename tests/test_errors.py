"""Messages name settings as the user writes them: flags, or keys in the workflow."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from esm_pipeline import cli
from esm_pipeline.errors import IN_WORKFLOW, InputError, setting
from esm_pipeline.formats.results.open import open_results
from esm_pipeline.settings import Settings
from esm_pipeline.settings.messages import keys
from esm_pipeline.settings.sections import CleaningSettings
from esm_pipeline.tasks import COMMANDS

PACKAGE = Path(cli.__file__).parent
KEYS = [*keys(Settings)]
SECTIONS = ("shard", "embed", "fold", "score", "classify", "limits")
IN_TEXT = re.compile(rf"\b(?:{'|'.join(SECTIONS)})\.([a-z_]+)\b")
FLAG_IN_MESSAGE = re.compile(r"(?<![\w-])--([a-z][a-z0-9-]+)")
TASKS = ("embed", "fold", "score", "classify")

ONLY_IN_THE_WORKFLOW = {
    "settings/__init__.py",
    "structure/quality.py",
    "tasks/common/requests.py",
    "tasks/fold/work.py",
}
"""Modules whose messages only the workflow shows: of its config, its jobs, and in its report."""

OF_THE_COMMAND_LINE = {
    "formats/exports/uniprot.py": {"dtype"},
    "known_models.py": {"model"},
    "tasks/run/export.py": {"dtype"},
    "tasks/run/models.py": {"model"},
}
"""Flags in what only the command line shows."""


def modules() -> Iterator[tuple[str, ast.Module]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        yield path.relative_to(PACKAGE).as_posix(), ast.parse(path.read_text())


def named_settings() -> Iterator[tuple[str, str]]:
    """Module and key of each call of `setting`; all keys that `{task}.long` and the like mean."""
    for name, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setting":
                (argument,) = node.args
                yield from ((name, key) for key in meant(argument, tree))


def meant(argument: ast.expr, tree: ast.Module) -> list[str]:
    """The keys that the argument of `setting` can be; of a name, all keys in the module."""
    if isinstance(argument, ast.Constant):
        return [argument.value]
    if isinstance(argument, ast.Name):
        texts = [one.value for one in ast.walk(tree) if isinstance(one, ast.Constant)]
        return [text for text in texts if isinstance(text, str) and IN_TEXT.fullmatch(text)]
    assert isinstance(argument, ast.JoinedStr), ast.unparse(argument)
    text = ast.unparse(argument)[2:-1]
    if text.endswith("}"):
        section = text.split(".")[0]
        return [f"{section}.{name}" for name in CleaningSettings.model_fields]
    return [text.replace(text[: text.index("}") + 1], task) for task in TASKS]


def test_every_setting_that_a_message_names_exists():
    found = set(named_settings())
    assert len({key for _, key in found}) > 15
    assert [one for one in found if one[1] not in KEYS] == []


def test_every_setting_that_a_message_names_has_a_flag(monkeypatch):
    monkeypatch.delenv(IN_WORKFLOW, raising=False)
    options = {
        name: {flag for one in cli.command_parser(name)._actions for flag in one.option_strings}
        for name in COMMANDS
    }
    for module, key in set(named_settings()):
        section = key.rpartition(".")[0]
        command = section or "embed"  # keys without a section are those of all tasks
        assert setting(key) in options[command], f"{module}: {key}"


@pytest.mark.parametrize(
    ("key", "on_the_command_line"),
    [("score.mutant_aa_col", "--mutant-aa-col"), ("revision", "--revision")],
)
def test_a_setting_is_a_flag_or_a_key(monkeypatch, key, on_the_command_line):
    monkeypatch.delenv(IN_WORKFLOW, raising=False)
    assert setting(key) == on_the_command_line
    monkeypatch.setenv(IN_WORKFLOW, "1")
    assert setting(key) == key


NO_MESSAGES = ("add_argument", "add_parser", "Field", "setting")
"""Functions whose texts are not messages."""


def messages(tree: ast.Module) -> Iterator[str]:
    """The texts of several words in a module, but docstrings, help and examples."""
    skipped: set[int] = set()
    for node in ast.walk(tree):
        is_text = isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)
        called = getattr(node, "func", None)
        is_help = getattr(called, "attr", getattr(called, "id", "")) in NO_MESSAGES
        is_table = isinstance(node, ast.Assign) and any(
            getattr(one, "id", "").endswith(("EXAMPLES", "HELP")) for one in node.targets
        )
        if id(node) in skipped or is_help or is_text or is_table:
            skipped |= {id(one) for one in ast.walk(node)}
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and " " in node.value:
            yield node.value


def wrongly_named(name: str, tree: ast.Module) -> list[str]:
    """Messages of a module that spell out keys or flags of settings, and so mislead one reader."""
    if name in ONLY_IN_THE_WORKFLOW or name.startswith("model/"):  # the library knows no settings
        return []
    own = OF_THE_COMMAND_LINE.get(name, set())
    last = {key.rpartition(".")[2].replace("_", "-") for key in KEYS} - own
    return [
        text
        for text in messages(tree)
        if any(found[0] in KEYS for found in IN_TEXT.finditer(text))
        or any(found in last for found in FLAG_IN_MESSAGE.findall(text))
    ]


def test_no_message_spells_a_key_or_flag_out():
    found = {name: wrong for name, tree in modules() if (wrong := wrongly_named(name, tree))}
    assert found == {}


@pytest.mark.parametrize(
    "line",
    ["raise InputError('set shard.gaps to remove')", "raise InputError(f'{a}: raise --window')"],
)
def test_one_that_does_is_seen(line):
    assert wrongly_named("tasks/x.py", ast.parse(line)) != []


@pytest.mark.parametrize(("in_workflow", "named"), [("", "--include"), ("1", "embed.include")])
def test_what_is_not_stored_says_how_to_store_it(monkeypatch, in_workflow, named):
    monkeypatch.setenv(IN_WORKFLOW, in_workflow)
    golden = Path(__file__).parent / "golden/results/my_proteins/embeddings.h5"
    with (
        open_results(golden) as results,
        pytest.raises(InputError, match=f"add 'maps' to {named} and run again"),
    ):
        results.stored("maps")
