"""The help of all commands: groups, allowed values, defaults; and its examples, which run."""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import pytest
import torch

from esm_pipeline import cli
from esm_pipeline.formats.checksums import write_digests
from esm_pipeline.model import EsmForProteinFolding, demo_model
from esm_pipeline.model.folding.demo import write_demo
from esm_pipeline.parsers import FLAG_GROUPS, Parser
from esm_pipeline.settings import CleaningSettings, LabelSettings, StructureSettings
from esm_pipeline.settings.messages import flag
from esm_pipeline.settings.section import Section
from esm_pipeline.settings.sections import (
    ClassifySettings,
    EmbedSettings,
    FoldSettings,
    ScoreSettings,
)
from esm_pipeline.tasks import (
    COMMANDS,
    GROUP_TITLES,
    USER_GROUP,
    Command,
    commands_with,
    module_of,
)
from tests.reference_page import subparsers_of
from tests.tasks.classify.classifying import RESIDUE, SEQUENCE, save

GOLDEN = Path(__file__).parent / "golden"
USER_COMMANDS = [name for name, command in COMMANDS.items() if command.group == USER_GROUP]
SECTIONS: dict[str, tuple[type[Section], ...]] = {
    "embed": (EmbedSettings, CleaningSettings),
    "score": (ScoreSettings, CleaningSettings),
    "fold": (FoldSettings, StructureSettings, CleaningSettings),
    "classify": (ClassifySettings, LabelSettings, CleaningSettings),
    "structures": (StructureSettings,),
    "classes": (LabelSettings,),
    "shard": (CleaningSettings,),
}


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")


def parsers() -> Iterator[Parser]:
    """The parser without a command, those of all commands, and those of their own commands."""
    yield cli.build_parser()
    for name in COMMANDS:
        parser = cli.command_parser(name)
        yield parser
        for inner in subparsers_of(parser).values():
            assert isinstance(inner, Parser)
            yield inner


# Commands.


def test_every_command_is_in_a_group_and_has_examples():
    assert {command.group for command in COMMANDS.values()} == set(GROUP_TITLES)
    assert [*commands_with("EXAMPLES")] == [*COMMANDS]
    with pytest.raises(TypeError):
        Command("run.new", "no group")  # type: ignore[call-arg]


def test_the_commands_of_users_come_first():
    text = cli.build_parser().format_help()
    places = [text.index(f"\n{title}:\n") for title in GROUP_TITLES]
    assert places == sorted(places)
    for name, command in COMMANDS.items():
        place = re.search(rf"^  {name} +{re.escape(command.help.split()[0])}", text, re.M)
        assert place is not None
        assert (place.start() < places[1]) is (name in USER_COMMANDS)
    assert "esm-pipeline COMMAND --help" in text
    assert all(line in " ".join(text.split()).replace("\\ ", "") for line, _ in cli.MAIN_EXAMPLES)


@pytest.mark.parametrize("title", GROUP_TITLES)
def test_without_a_command_the_help_is_shown(capsys, title):
    with pytest.raises(SystemExit) as ended:
        cli.main([])
    assert ended.value.code == 2
    assert title in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["emb"], "esm-pipeline: no command 'emb'; did you mean embed? (see"),
        (["xyz"], "esm-pipeline: no command 'xyz' (see esm-pipeline --help)"),
        (["--model", "demo"], "esm-pipeline: --model: a command comes first, such as"),
        (["--verson"], "unrecognized arguments: --verson; did you mean --version? (see"),
        (["embed", "--modle=demo", "a", "b"], "arguments: --modle; did you mean --model? (see"),
        (["score", "--mutant_aa_col", "x"], "--mutant_aa_col; did you mean --mutant-aa-col? (see"),
        (["aggregate", "embd"], "did you mean embed? (see esm-pipeline aggregate --help)"),
        (["aggregate", "embed", "--bundel", "x"], "--bundel; did you mean --bundle? (see"),
        (["embed", "--on-failure", "kep"], "did you mean keep? (see esm-pipeline embed --help)"),
        (["embed", "--colour", "red", "a", "b"], "arguments are required: --model (see"),
        (["verdict", "--out=a", "--colour"], "unrecognized arguments: --colour (see"),
    ],
)
def test_what_is_mistyped_is_one_line_with_a_suggestion(capsys, arguments, told):
    with pytest.raises(SystemExit) as ended:
        cli.main(arguments)
    (line,) = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert told in line


def test_what_looks_like_a_flag_and_is_none_is_left_alone():
    """After `--`, in the arguments of a command of its own, and in a text with a space."""
    parser = cli.command_parser("verdict")
    assert parser.parse_args(["--out=a", "--", "--ou"]).records == [Path("--ou")]
    inner = cli.command_parser("download")
    assert inner.parse_args(["--model=demo", "embed", "--layers=0"]).layers == "0"


# Flags.


def test_help_fits_into_80_columns_and_shows_no_internals():
    for parser in parsers():
        text = parser.format_help()
        assert [line for line in text.splitlines() if len(line) > 80] == []
        assert "\u00a0" not in text
        for unwanted in ("default: None", "default: False", "default: []", "SUPPRESS"):
            assert unwanted not in text
        assert re.findall("`[a-z]+_[a-z_]+`", text) == [], parser.prog


def closed_sets() -> Iterator[tuple[str, type[Section], str, tuple[object, ...]]]:
    """Command, section, field and allowed values of each flag that has few."""
    for command, sections in SECTIONS.items():
        for section in sections:
            for name, field in section.model_fields.items():
                kinds: list[Any] = [field.annotation, *get_args(field.annotation)]
                for kind in kinds:
                    if get_origin(kind) is Literal:
                        yield command, section, name, get_args(kind)


def flag_text(parser: argparse.ArgumentParser, name: str) -> str:
    """What the help says about one flag."""
    (action,) = [one for one in parser._actions if flag(name) in one.option_strings]
    formatter = parser._get_formatter()
    formatter.add_argument(action)
    return " ".join(formatter.format_help().split())


def test_every_closed_set_of_values_is_listed():
    found = list(closed_sets())
    assert len(found) > 30
    for command, _, name, values in found:
        text = flag_text(cli.command_parser(command), name)
        assert [value for value in values if not re.search(rf"\b{value}\b", text)] == [], text
    assert "{skip,remove}" in flag_text(cli.command_parser("embed"), "gaps")
    assert "{mean,residue,bos,contacts}[,...]" in flag_text(cli.command_parser("embed"), "include")
    assert "{true,false}" in flag_text(cli.command_parser("fold"), "archive")


def test_keys_in_descriptions_become_flags():
    text = flag_text(cli.command_parser("score"), "position_col")
    assert "--mutant-aa-col" in text
    description = ScoreSettings.model_fields["position_col"].description
    assert description is not None
    assert "`mutant_aa_col`" in description


@pytest.mark.parametrize("command", ["embed", "score", "fold", "classify"])
def test_every_flag_of_a_task_is_in_a_group(command):
    parser = cli.command_parser(command)
    parser.format_help()  # which sorts them
    groups = {str(one.title): one._group_actions for one in parser._action_groups}
    titles = [title for title, actions in groups.items() if actions]
    assert titles[-1] == "other flags"
    assert titles[:-1] == [title for title in FLAG_GROUPS if title in titles]
    assert len(titles) > 5
    assert [one.dest for one in groups["other flags"]] == ["help", "quiet"]
    assert "--token-budget" in {one.option_strings[0] for one in groups["speed and memory"]}
    assert "gaps" in {one.dest for one in groups["records that cannot be used as they are"]}


# Examples.


def arguments_of(line: str) -> list[str]:
    """The arguments of an example."""
    program, *arguments = shlex.split(line)
    assert program == "esm-pipeline"
    return arguments


@pytest.mark.parametrize("command", COMMANDS)
def test_every_example_is_understood_and_shown(command):
    parser = cli.command_parser(command)
    text = " ".join(parser.format_help().replace("\\\n", "").split())
    for line, purpose in module_of(command).EXAMPLES:
        name, *arguments = arguments_of(line)
        assert name == command
        parser.parse_args(arguments)
        assert line in text
        assert purpose.split(" ")[0] in text


def test_an_example_that_is_wrong_is_seen():
    with pytest.raises(SystemExit):
        cli.command_parser("embed").parse_args(["--model=demo", "--colour=red", "a", "b"])


@pytest.fixture(scope="module")
def examples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the examples read; its folders have the names of published models."""
    folder = tmp_path_factory.mktemp("examples")
    for name in ("esm2_t12_35M_UR50D", "esm2_t33_650M_UR50D"):
        (folder / name).symlink_to(demo_model())
    for seed in (1, 2):
        (folder / f"esm1v_t33_650M_UR90S_{seed}").symlink_to(demo_model())
    write_demo(folder / "esmfold_v1", EsmForProteinFolding)
    save(folder / "my_classifier", SEQUENCE)
    save(folder / "my_residue_classifier", RESIDUE)
    sequence = "MKTAYIAKQRQISFVKSHFSRQ"
    (folder / "proteins.fasta").write_text(f">one\n{sequence}\n>two\nGAVLIWKK\n>BRCA1\nMDLSALR\n")
    (folder / "wt.fasta").write_text(f">BRCA1\n{sequence}\n")
    (folder / "variants.csv").write_text("mutant\nK2A\nT3S:A4G\n")
    (folder / "vep.tsv").write_text("Protein_position\tAmino_acids\n2\tK/A\n3\tT/S\n")
    make_results(folder / "results")
    return folder


def make_results(folder: Path) -> None:
    """The golden results, without the report, which is not kept there."""
    shutil.copytree(GOLDEN / "results", folder)
    (folder / "my_sample").symlink_to("my_proteins")
    provenance = folder / "provenance.json"
    facts = json.loads(provenance.read_text())
    del facts["results"]["report.html"]
    provenance.write_text(json.dumps(facts))
    write_digests(folder / "provenance.sha256", {provenance.name: provenance})


def test_the_examples_of_users_run(examples, monkeypatch, capsys):
    """In the order of the commands: some read what others wrote."""
    monkeypatch.chdir(examples)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    lines = [line for line, _ in cli.MAIN_EXAMPLES]
    lines += [line for name in USER_COMMANDS for line, _ in module_of(name).EXAMPLES]
    assert len(lines) > 15
    for line in lines:
        command, *arguments = arguments_of(line)
        code = cli.main([command, *arguments])
        assert code == 0, f"{line}\n{capsys.readouterr().err}"
        if command not in ("models", "download", "verify"):
            assert Path(arguments[-1]).exists(), line
