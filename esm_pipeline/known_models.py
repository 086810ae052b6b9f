"""The published checkpoints, by the names of the hub and of fair-esm.

`esm2_t12_35M_UR50D`, as fair-esm calls it, means `facebook/esm2_t12_35M_UR50D` wherever a model is
accepted. No torch: the workflow reads names at every parse.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import NamedTuple

DEMO = "demo"
OWN_NAMES = (DEMO, "demo-fold")
"""Names of models that are part of this package."""

OWNER = "facebook/"
"""Where all published checkpoints are on the hub."""

MASKED_LM, VARIANT_EFFECT, FOLDING_MODEL = "masked LM", "variant effect", "folding"
LONGEST_ABSOLUTE = 1022
"""Residues that the position tables of ESM-1b and ESM-1v have room for."""

SIMILAR, SIMILAR_OF_FAMILY = 0.75, 0.6
"""How similar, from 0 to 1, a mistyped name is to what was meant; less if its family is clear."""

FAMILY = re.compile("esm[-_]?[12f]")
"""The beginning of a name of ESM-1, ESM-2 or ESMFold, in small letters."""


class KnownModel(NamedTuple):
    """A checkpoint that can be used by its name alone."""

    name: str
    """Hub id, or `demo` for the packaged model."""
    kind: str
    parameters: int
    layers: int
    width: int
    longest: int | None
    """Residues of the longest sequence; None: no limit but memory."""
    purpose: str

    @property
    def fair_esm_name(self) -> str:
        """Its name in fair-esm; empty for the packaged model."""
        return self.name.removeprefix(OWNER) if self.name.startswith(OWNER) else ""

    @property
    def float32_gb(self) -> float:
        """Memory of the weights in float32, in GB."""
        return 4 * self.parameters / 1e9


ENSEMBLE = "effects of variants; for the published ensemble give all five, each by --model"

KNOWN_MODELS = (
    KnownModel(
        *(DEMO, MASKED_LM, 1_823_674, 4, 192, None),
        "packaged, for trying commands and not for science; in `fold`, random weights",
    ),
    KnownModel(
        *(OWNER + "esm2_t6_8M_UR50D", MASKED_LM, 7_512_474, 6, 320, None),
        "a first try, and large sets on a laptop",
    ),
    KnownModel(
        *(OWNER + "esm2_t12_35M_UR50D", MASKED_LM, 33_501_394, 12, 480, None),
        "embeddings and scores on a laptop",
    ),
    KnownModel(
        *(OWNER + "esm2_t30_150M_UR50D", MASKED_LM, 148_140_154, 30, 640, None),
        "embeddings, scores and fine-tuning without a large GPU",
    ),
    KnownModel(
        *(OWNER + "esm2_t33_650M_UR50D", MASKED_LM, 651_043_254, 33, 1280, None),
        "the usual choice for embeddings, contacts and scores",
    ),
    KnownModel(
        *(OWNER + "esm2_t36_3B_UR50D", MASKED_LM, 2_839_005_634, 36, 2560, None),
        "contacts, and embeddings of rare families; needs a GPU, or patience",
    ),
    KnownModel(
        *(OWNER + "esm2_t48_15B_UR50D", MASKED_LM, 15_129_100_194, 48, 5120, None),
        "the largest; needs a large GPU",
    ),
    KnownModel(
        *(OWNER + "esm1b_t33_650M_UR50S", MASKED_LM, 652_359_094, 33, 1280, LONGEST_ABSOLUTE),
        "comparison with work of before ESM-2",
    ),
    *(
        KnownModel(
            f"{OWNER}esm1v_t33_650M_UR90S_{seed}",
            *(VARIANT_EFFECT, 652_356_534, 33, 1280, LONGEST_ABSOLUTE, ENSEMBLE),
        )
        for seed in range(1, 6)
    ),
    KnownModel(
        *(OWNER + "esmfold_v1", FOLDING_MODEL, 3_525_038_915, 36, 2560, None),
        "structures; layers and width are those of its language model, ESM-2 3B",
    ),
)
"""All of them, in the order in which they are listed."""

BY_FAIR_ESM_NAME = {
    model.fair_esm_name: model.name for model in KNOWN_MODELS if model.fair_esm_name
}


def hub_name(name: str) -> str:
    """The hub id that a name of fair-esm means; any other name unchanged.

    A file or folder of that name wins.
    """
    found = BY_FAIR_ESM_NAME.get(name)
    return name if found is None or os.path.lexists(name) else found


def similar_model(name: str) -> str | None:
    """The known model that a mistyped `name` may mean; None for the name of a known model."""
    fair = {one.lower(): full for one, full in BY_FAIR_ESM_NAME.items()}
    names = {**fair, **{full.lower(): full for full in fair.values()}}
    names |= {one: one for one in OWN_NAMES}
    given = name.lower().removesuffix(".pt")
    if name in (*fair.values(), *BY_FAIR_ESM_NAME, *OWN_NAMES):
        return None
    if begun := [one for one in names if given and one.startswith(given) and "_" in given]:
        return names[begun[0]]
    cutoff = SIMILAR_OF_FAMILY if FAMILY.match(given) else SIMILAR
    near = difflib.get_close_matches(given, names, n=1, cutoff=cutoff)
    return names[near[0]] if near else None


def mistyped(name: str) -> str:
    """What is wrong with a name that no file has and that cannot be a hub id's; else empty.

    A name without an owner that begins with `esm`, or is similar to that of a known model.
    """
    if "/" in name or name in BY_FAIR_ESM_NAME or name in OWN_NAMES:
        return ""
    near = similar_model(name)
    if near is None and not name.lower().startswith("esm"):
        return ""
    remedy = f"did you mean {near}?" if near else "give a hub id, owner/model"
    return f"no such folder or file, and no known model; {remedy} (see esm-pipeline models)"
