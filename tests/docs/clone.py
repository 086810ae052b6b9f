"""What the pages take for granted: a repository, a hub with models, files of a user.

Nothing is installed: the `.venv` of a clone leads to the packages of the Python that runs the
tests, and a `make` of our own makes it, so that the commands of a page are run as they stand.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib
import torch

from esm_pipeline import (
    EsmConfig,
    EsmForMaskedLM,
    EsmForProteinFolding,
    EsmForSequenceClassification,
    EsmForTokenClassification,
    EsmTokenizer,
)
from esm_pipeline.model.folding.demo import write_demo
from tests.docs.blocks import ROOT
from tests.oracles.hub_server import serve

KEPT = (
    *("esm_pipeline", "workflow", "config", "envs", "tests"),
    *("Makefile", "Snakefile", "pyproject.toml", "LICENSE", "requirements*", "*.md", "*.cff"),
)
"""What a clone has that a page may need."""

ROTARY = {"position_embedding_type": "rotary", "token_dropout": True}
LEARNED = {"position_embedding_type": "absolute", "max_position_embeddings": 1026}
HUB: dict[str, dict[str, Any]] = {
    "facebook/esm2_t6_8M_UR50D": {"num_hidden_layers": 6, **ROTARY},
    "facebook/esm2_t12_35M_UR50D": {"num_hidden_layers": 12, **ROTARY},
    "facebook/esm2_t30_150M_UR50D": {"num_hidden_layers": 30, **ROTARY},
    "facebook/esm2_t33_650M_UR50D": {"num_hidden_layers": 33, **ROTARY},
    **{
        f"facebook/esm1v_t33_650M_UR90S_{seed}": {"num_hidden_layers": 33, **LEARNED}
        for seed in range(1, 6)
    },
}
"""Stand-ins for published models: narrow, with random weights, but with all layers."""

NARROW = {
    "vocab_size": 33,
    "mask_token_id": 32,
    "pad_token_id": 1,
    "hidden_size": 16,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}
FOLDING = "facebook/esmfold_v1"
CLASSIFIERS = {
    "my_classifier": (EsmForSequenceClassification, {0: "soluble", 1: "membrane"}),
    "my_residue_classifier": (EsmForTokenClassification, {0: "other", 1: "binding"}),
    "someone/esm2-binding-sites": (EsmForTokenClassification, {0: "other", 1: "binding"}),
}
"""Classifiers in the clone, and on the hub if the name has an owner."""

PROTEIN = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQVKVKALPDAQFEVV"
PROTEINS = f">P12345 first\n{PROTEIN}\n>Q67890 second\n{PROTEIN[::-1]}\n"
GENE = "ATG" + "GCTAAACGTGATCTGGAA" * 8 + "TAA"
TSV = "sample\tfasta\nfirst\tmy.fasta\nsecond\tproteins.fasta\n"
FILES = {
    "my.fasta": PROTEINS,
    "proteins.fasta": PROTEINS,
    "proteome.fasta": PROTEINS,
    "wt.fasta": f">P12345\n{PROTEIN}\n",
    "variants.csv": "mutant\nK2R\nT3A:A4G\n",
    "scan.csv": "mutant,HGVS,effect\nK2R,p.Lys2Arg,0.1\nT3A:A4G,p.Thr3Ala,0.9\n",
    "genes.fna": f">gene_1\n{GENE}\n>gene_2\n{GENE.replace('GAT', 'GAC')}\n",
    "samples.tsv": TSV,
}
"""Files that a reader has, or is told to replace by the own ones."""

MAKE = """#!/bin/sh
# What `make` would install is there already; then what it does after that.
mkdir -p .venv && ln -sfn {prefix}/* .venv/ && touch .venv/.workflow .venv/.test
touch -d 2000-01-01 requirements.lock requirements-test.lock requirements-torch.txt
case " $* " in *" test "*) set -- --dry-run "$@";; esac  # tests within tests
exec {make} "$@"
"""


def write_hub(folder: Path) -> Path:
    """Write all models that the pages name into `folder`, by owner and name."""
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # new heads
        for name, settings in HUB.items():
            save(EsmForMaskedLM(EsmConfig(**NARROW, **settings)), folder / name)
        for name, (kind, labels) in CLASSIFIERS.items():
            config = EsmConfig(**NARROW, **ROTARY, num_hidden_layers=2, id2label=labels)
            save(kind(config), folder / name)
    write_demo(folder / FOLDING, EsmForProteinFolding, random_weights=False)
    return folder


def save(model: Any, folder: Path) -> None:
    """Save a model with its tokenizer."""
    model.save_pretrained(folder)
    EsmTokenizer.standard().save_pretrained(folder)


def write_commands(folder: Path) -> Path:
    """Write the `make` of our own, and an environment to link to."""
    folder.mkdir()
    make = folder / "make"
    prefix = write_environment(folder / "environment")
    make.write_text(MAKE.format(prefix=prefix, make=shutil.which("make")))
    make.chmod(0o755)
    return folder


def write_environment(folder: Path) -> Path:
    """Write a virtual environment with the packages of this one; nothing is installed."""
    own = Path(sys.prefix)
    (folder / "bin").mkdir(parents=True)
    for name in ("lib", "lib64", "include", "pyvenv.cfg"):
        if (own / name).exists() and sys.prefix != sys.base_prefix:
            (folder / name).symlink_to(own / name)
    for path in Path(sys.executable).parent.iterdir():
        if not path.name.lower().startswith("activate"):
            (folder / "bin" / path.name).symlink_to(path)
    (folder / "bin/activate").write_text(
        'VIRTUAL_ENV="$PWD/.venv"; PATH="$VIRTUAL_ENV/bin:$PATH"; export VIRTUAL_ENV PATH\n'
    )
    return folder


def copy_tree(folder: Path) -> Path:
    """Copy what is in the repository, as it is in this working tree."""
    folder.mkdir()
    for path in (path for pattern in KEPT for path in ROOT.glob(pattern)):
        if path.is_dir():
            shutil.copytree(path, folder / path.name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy2(path, folder)
    return folder


def make_repository(folder: Path, hub: Path) -> Path:
    """Make a repository of this working tree, with the files and models of a user in it."""
    copy_tree(folder)
    for name, text in FILES.items():
        (folder / name).write_text(text)
    for name in CLASSIFIERS:
        if "/" not in name:
            shutil.copytree(hub / name, folder / name)
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "a"]):
        subprocess.run([*git, *command], check=True)
    return folder


@contextmanager
def environment(folder: Path, repository: Path) -> Iterator[dict[str, str]]:
    """The variables of a terminal in which the pages are tried: bare, with a hub of our own.

    PATH has no package of this project: a page has to say where they are. The hub is the folder
    `hub`. URL is the address of the repository, and Python takes this package from there, as if it
    had been installed into the environment.
    """
    commands = write_commands(folder / "commands")
    conda = ROOT / "tests/workflow/fake_conda/bin"
    with serve(folder / "hub") as served:
        kept = ("LANG", "LC_ALL", "TMPDIR", "OMP_NUM_THREADS", "MKL_NUM_THREADS")
        yield {
            **{name: os.environ[name] for name in kept if name in os.environ},
            "HOME": str(folder),
            "PATH": f"{commands}:{conda}:/usr/local/bin:/usr/bin:/bin",
            "MPLBACKEND": "Agg",
            "MPLCONFIGDIR": matplotlib.get_cachedir(),  # its list of fonts takes a while to make
            "HF_HOME": str(folder / "hf"),
            "HF_ENDPOINT": served.address,
            "URL": str(repository),
            "PYTHONPATH": str(repository),
            "ENVIRONMENT": str(commands / "environment"),
        }
