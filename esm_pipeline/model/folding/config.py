"""The folding part of a config. Peer: transformers configuration_esm.py.

Nested as in `config.json`: `EsmConfig.esmfold_config` is an `EsmFoldConfig`, its `trunk` a
`TrunkConfig`, whose `structure_module` is a `StructureModuleConfig`. Each also takes dicts for
nested configs, and raises WeightsError for invalid values. Imports no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from difflib import get_close_matches
from typing import Any, TypeVar

from esm_pipeline.errors import WeightsError, brief
from esm_pipeline.model.bounds import (
    MOST_LAYERS,
    MOST_PASSES,
    MOST_WIDTH,
    SWITCH,
    is_number,
    is_switch,
    is_whole,
    whole_between,
)
from esm_pipeline.structure import residues

SPECIAL_TOKENS = ("<cls>", "<pad>", "<eos>", "<mask>")
MOST_DROPOUT = 0.4
ANGLES = 7
"""Number of torsion angles: ω, φ, ψ and χ1–χ4."""

C = TypeVar("C", bound="FoldingConfig")


class FoldingConfig:
    """Base of the three configs: conversion from and to dicts, and checks that name the setting."""

    @classmethod
    def read(cls: type[C], given: C | Mapping[str, Any] | None) -> C:
        """A config from a config, a dict, or None for the defaults.

        Unknown keys are ignored, as transformers 5 writes some into every config; an unknown key
        that is nearly a known one raises WeightsError.
        """
        if isinstance(given, cls):
            return given
        if given is not None and not isinstance(given, Mapping):
            raise WeightsError(
                f"config: {cls.__name__} from {brief(given)}; it should be a JSON object"
            )
        known = [one.name for one in fields(cls)]  # type: ignore[arg-type]
        values = dict(given or {})
        for name in values.keys() - set(known):
            near = get_close_matches(name, known, n=1, cutoff=0.85)
            if near:
                raise WeightsError(f"config: {cls.__name__} has no {brief(name)}; use '{near[0]}'")
        return cls(**{name: values[name] for name in known if name in values})

    def to_dict(self) -> dict[str, Any]:
        """All settings, nested, as in `config.json`."""
        return asdict(self)  # type: ignore[call-overload, no-any-return]

    def require_whole(self, *names: str, least: int = 1, most: int = MOST_WIDTH) -> None:
        """Raise WeightsError for a setting that is not a whole number from `least` to `most`."""
        for name in names:
            if not is_whole(getattr(self, name), least, most):
                raise self.wrong(name, whole_between(least, most))

    def require_switches(self, *names: str) -> None:
        """Raise WeightsError for a setting that is neither true nor false."""
        for name in names:
            if not is_switch(getattr(self, name)):
                raise self.wrong(name, SWITCH)

    def wrong(self, name: str, wanted: str) -> WeightsError:
        """The error for a setting with a wrong value."""
        return WeightsError(
            f"config: {name} of the {type(self).__name__} is {brief(getattr(self, name))}; it "
            f"should be {wanted}"
        )


@dataclass
class StructureModuleConfig(FoldingConfig):
    """Sizes of the structure module, with the names and defaults of the reference."""

    sequence_dim: int = 384
    pairwise_dim: int = 128
    ipa_dim: int = 16
    resnet_dim: int = 128
    num_heads_ipa: int = 12
    num_qk_points: int = 4
    num_v_points: int = 8
    dropout_rate: float = 0.1
    num_blocks: int = 8
    num_transition_layers: int = 1
    num_resnet_blocks: int = 2
    num_angles: int = 7
    trans_scale_factor: float = 10
    epsilon: float = 1e-8
    inf: float = 1e5

    def __post_init__(self) -> None:
        self.require_whole("sequence_dim", "pairwise_dim", "ipa_dim", "resnet_dim")
        self.require_whole("num_heads_ipa", "num_qk_points", "num_v_points")
        self.require_whole("num_blocks", most=MOST_PASSES)
        self.require_whole("num_transition_layers", "num_resnet_blocks", least=0, most=MOST_LAYERS)
        for name in ("trans_scale_factor", "epsilon", "inf"):
            if not is_number(getattr(self, name), 0) or not getattr(self, name):
                raise self.wrong(name, "a number above 0")
        if self.num_angles != ANGLES:
            raise self.wrong("num_angles", f"{ANGLES}, the torsion angles of a residue")


@dataclass
class TrunkConfig(FoldingConfig):
    """Sizes of the folding trunk, with the names and defaults of the reference.

    max_recycles: passes through the trunk, including the first, if `num_recycles` is not given.
    chunk_size: rows of the pair representation processed at a time; None for the fastest.
    layer_drop and cpu_grad_checkpoint have no effect, as in the reference.
    """

    num_blocks: int = 48
    sequence_state_dim: int = 1024
    pairwise_state_dim: int = 128
    sequence_head_width: int = 32
    pairwise_head_width: int = 32
    position_bins: int = 32
    dropout: float = 0
    layer_drop: float = 0
    cpu_grad_checkpoint: bool = False
    max_recycles: int = 4
    chunk_size: int | None = 128
    structure_module: StructureModuleConfig = field(default_factory=StructureModuleConfig)

    def __post_init__(self) -> None:
        self.structure_module = StructureModuleConfig.read(self.structure_module)
        self.require_whole("num_blocks", least=0, most=MOST_LAYERS)
        self.require_whole("sequence_state_dim", "pairwise_state_dim", "position_bins")
        self.require_whole("sequence_head_width", "pairwise_head_width")
        self.require_whole("max_recycles", most=MOST_PASSES)
        if self.chunk_size is not None:
            self.require_whole("chunk_size")
        for state in ("sequence", "pairwise"):
            width = getattr(self, f"{state}_head_width")
            if getattr(self, f"{state}_state_dim") % width:
                raise self.wrong(f"{state}_state_dim", f"a multiple of the head width, {width}")
        if self.pairwise_state_dim % 2:
            raise self.wrong("pairwise_state_dim", "even")
        if not is_number(self.dropout, 0) or not self.dropout < MOST_DROPOUT:
            raise self.wrong("dropout", f"from 0 and less than {MOST_DROPOUT}")


@dataclass
class EsmFoldConfig(FoldingConfig):
    """How the trunk uses the language model, with the names and defaults of the reference.

    fp16_esm: whether the language model was used in float16; here weights keep the dtype in which
    they are loaded. use_esm_attn_map: initialise the pair representation with its attention maps.
    esm_ablate_sequence, esm_ablate_pairwise: use zeros for its states or its maps. bypass_lm: do
    not run it. embed_aa: embed the residues as well. esm_type and esm_input_dropout have no effect,
    as in the reference.
    """

    esm_type: str | None = None
    fp16_esm: bool = True
    use_esm_attn_map: bool = False
    esm_ablate_pairwise: bool = False
    esm_ablate_sequence: bool = False
    esm_input_dropout: float = 0
    embed_aa: bool = True
    bypass_lm: bool = False
    lddt_head_hid_dim: int = 128
    trunk: TrunkConfig = field(default_factory=TrunkConfig)

    def __post_init__(self) -> None:
        self.trunk = TrunkConfig.read(self.trunk)
        self.require_whole("lddt_head_hid_dim")
        self.require_switches("use_esm_attn_map", "embed_aa", "bypass_lm")
        self.require_switches("esm_ablate_pairwise", "esm_ablate_sequence", "fp16_esm")


def residue_tokens(vocabulary: list[str] | tuple[str, ...]) -> list[int]:
    """Token ids of the residues 0–20 of `residues.LETTERS` in a vocabulary.

    Raises WeightsError if it lacks one of them, or a special token.
    """
    for token in (*SPECIAL_TOKENS, *residues.LETTERS):
        if token not in vocabulary:
            raise WeightsError(
                f"config: vocab_list has no '{token}', which a folding model needs; leave it out "
                "for the vocabulary of the published models"
            )
    return [list(vocabulary).index(letter) for letter in residues.LETTERS]
