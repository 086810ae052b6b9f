"""`EsmForProteinFolding`: from sequences to structures. Peers: transformers 4.37.2, fair-esm.

Where the peers are wrong or unclear: here pLDDT is from 0 to 100; pTM, aligned errors and mean
pLDDT are computed for each sequence and do not depend on padding; without a mask, residues numbered
−1 are padding; chains are separated by ":".
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from esm_pipeline.errors import InputError, WeightsError
from esm_pipeline.footprint import BINS
from esm_pipeline.known_models import DEMO
from esm_pipeline.model.base import EsmPreTrainedModel, read_dtype
from esm_pipeline.model.checkpoints.hub import Checkpoint
from esm_pipeline.model.checkpoints.keys import BASE_PREFIX
from esm_pipeline.model.config import EsmConfig
from esm_pipeline.model.esm import EsmModel
from esm_pipeline.model.folding import confidence, language_model
from esm_pipeline.model.folding.complexes import CHAIN_GAP, LINKER, encode_sequences
from esm_pipeline.model.folding.config import EsmFoldConfig, residue_tokens
from esm_pipeline.model.folding.demo import DEMO_FOLD, RANDOM_MODEL, demo_checkpoint
from esm_pipeline.model.folding.linear import Linear
from esm_pipeline.model.folding.output import EsmForProteinFoldingOutput
from esm_pipeline.model.folding.structures import RANDOM, pdb_texts
from esm_pipeline.model.folding.torsions import atom_maps
from esm_pipeline.model.folding.trunk import FoldingTrunk
from esm_pipeline.structure import residues

RESIDUE_TOKENS = len(residues.LETTERS) + 2
"""Size of the trunk's own alphabet: residues from 0, an unused token, and the mask."""

MASKED = RESIDUE_TOKENS - 1
LDDT_BINS, DISTOGRAM_BINS, ATOMS = 50, 64, 37

CALLER = 4
"""Frames from a warning about a checkpoint up to the caller of `from_pretrained`."""

KEEP_CHUNK_SIZE = -1
"""Means: do not change the chunk size of the trunk."""


class EsmForProteinFolding(EsmPreTrainedModel):
    """A language model, the folding trunk, the structure module and heads for confidences.

    stem_dtype: precision of the language model, by default that of the rest. `from_pretrained`
    takes it too, and reads the weights directly in it.
    """

    _no_split_modules = (
        *EsmPreTrainedModel._no_split_modules,
        *("StructureModule", "TriangleAttention", "TriangleMultiplication"),
    )
    offloads = False
    """Whether the language model is on the device only while it runs."""

    def __init__(self, config: EsmConfig, *, stem_dtype: torch.dtype | str | None = None) -> None:
        super().__init__(config)
        self.stem_dtype = None if stem_dtype is None else read_dtype(stem_dtype)
        if config.esmfold_config is None:
            raise WeightsError("config: is_folding_model is not set; this is not a folding model")
        self.fold_config: EsmFoldConfig = config.esmfold_config
        _ = self.af2_to_esm  # raises WeightsError for a vocabulary without residues
        trunk = self.fold_config.trunk
        width, pair = trunk.sequence_state_dim, trunk.pairwise_state_dim
        self.esm = EsmModel(config, add_pooling_layer=False)
        self.esm.requires_grad_(False)
        self.esm_s_combine = nn.Parameter(torch.zeros(config.num_hidden_layers + 1))
        self.esm_s_mlp = mixer(config.hidden_size, width)
        if self.fold_config.use_esm_attn_map:
            self.esm_z_mlp = mixer(config.num_hidden_layers * config.num_attention_heads, pair)
        if self.fold_config.embed_aa:
            self.embedding = nn.Embedding(RESIDUE_TOKENS, width, padding_idx=0)
        self.trunk = FoldingTrunk(trunk)
        self.distogram_head = nn.Linear(pair, DISTOGRAM_BINS)
        self.ptm_head = nn.Linear(pair, BINS)
        self.lm_head = nn.Linear(width, RESIDUE_TOKENS)
        hidden = self.fold_config.lddt_head_hid_dim
        self.lddt_head = nn.Sequential(
            nn.LayerNorm(trunk.structure_module.sequence_dim),
            nn.Linear(trunk.structure_module.sequence_dim, hidden),
            nn.Linear(hidden, hidden),
            nn.Linear(hidden, ATOMS * LDDT_BINS),
        )
        self.post_init()
        self.esm.to(self.stem_dtype)

    @classmethod
    def _find_checkpoint(cls, name: str, **options: Any) -> Checkpoint:
        """Here "demo" is the folding model for demonstrations, with a warning."""
        if name not in (DEMO, DEMO_FOLD):
            return super()._find_checkpoint(name, **options)
        warnings.warn(RANDOM_MODEL, stacklevel=CALLER)
        return demo_checkpoint(EsmForProteinFolding)

    def precision_of(self, name: str) -> torch.dtype | None:
        """The dtype of the language model for its parameters, if it has its own."""
        return self.stem_dtype if name.startswith(BASE_PREFIX) else None

    def _init_weights(self, module: nn.Module) -> None:
        """As in the reference: layers of the trunk start as in AlphaFold."""
        if isinstance(module, Linear):
            module.reset_parameters()
        else:
            super()._init_weights(module)
        if module is self.trunk.recycle_disto:
            with torch.no_grad():
                module.weight[0].zero_()

    @property
    def af2_to_esm(self) -> Tensor:
        """(22,) token ids of padding and of each residue, in the order of `residues.LETTERS`."""
        assert self.config.vocab_list is not None, "a folding model's config has one"
        return torch.tensor([self.config.pad_token_id, *residue_tokens(self.config.vocab_list)])

    if TYPE_CHECKING:  # the type of `forward`, which `nn.Module` does not keep

        def __call__(
            self,
            input_ids: Tensor,
            attention_mask: Tensor | None = None,
            position_ids: Tensor | None = None,
            masking_pattern: Tensor | None = None,
            num_recycles: int | None = None,
            *,
            chain_index: Tensor | None = None,
            own: Tensor | None = None,
            compact: bool = False,
        ) -> EsmForProteinFoldingOutput:
            """As `forward`."""

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        masking_pattern: Tensor | None = None,
        num_recycles: int | None = None,
        *,
        chain_index: Tensor | None = None,
        own: Tensor | None = None,
        compact: bool = False,
    ) -> EsmForProteinFoldingOutput:
        """Residue numbers (B, R), in the order of `residues.LETTERS` → structures.

        attention_mask (B, R): 1 for residues; by default, −1 is padding, which has to follow the
        sequences. position_ids (B, R): residue numbers, by default from 0. masking_pattern (B, R):
        1 where the residue is hidden from the model. num_recycles: passes after the first; by
        default `config.esmfold_config.trunk.max_recycles` passes in all. chain_index (B, R): from
        0. own (B, R): 0 for linkers, which do not count in confidences. compact: leave out fields
        with dozens of numbers for each pair of residues, and states of earlier blocks. Raises
        InputError for shapes and numbers that do not fit.
        """
        aatype, mask = read_residues(input_ids, attention_mask)
        if position_ids is None:
            position_ids = torch.arange(aatype.shape[1], device=aatype.device)
        position_ids = position_ids.expand_as(aatype)
        own = mask if own is None else own
        chain_index = torch.zeros_like(aatype) if chain_index is None else chain_index
        s_0, z_0 = self.start(aatype, mask, masking_pattern)
        padded = None if bool(mask.all()) else mask
        structure = self.trunk(s_0, z_0, aatype, position_ids, padded, num_recycles)
        structure.pop("single")
        return EsmForProteinFoldingOutput(
            **self.structure_fields(structure, compact),
            **self.confidences(structure, own, chain_index, compact),
            **atom_maps(aatype, own),
            aatype=aatype,
            residue_index=position_ids,
            chain_index=chain_index,
            attention_mask=own,
        )

    def af2_idx_to_esm_idx(self, aa: Tensor, mask: Tensor) -> Tensor:
        """Residue numbers and mask (B, R) → token ids of the language model, with padding."""
        return self.af2_to_esm.to(aa.device)[(aa + 1).masked_fill(mask != 1, 0)]

    @torch.no_grad()
    def compute_language_model_representations(self, esmaa: Tensor) -> Tensor:
        """Token ids (B, R) without BOS and EOS → all states (B, R, n + 1, D), as the reference's.

        `forward` sums them layer by layer and never holds them all. Zeros at padding.
        """
        count = self.config.num_hidden_layers + 1
        if self.fold_config.bypass_lm:
            shape = (*esmaa.shape, count, self.config.hidden_size)
            return torch.zeros(shape, dtype=self.esm.dtype, device=esmaa.device)
        tokens, layout = language_model.add_special_tokens(self.esm, esmaa)
        states = self.esm.represent(layout.pack(tokens), layout, range(count)).hidden
        whole = [layout.unpack(states[layer], tokens.shape[1]) for layer in range(count)]
        return torch.stack(whole, dim=2)[:, 1:-1]

    def start(
        self, aatype: Tensor, mask: Tensor, masking_pattern: Tensor | None
    ) -> tuple[Tensor, Tensor | None]:
        """Initial s (B, R, S) and z (B, R, R, Z) of the trunk; None for a z of zeros."""
        settings = self.fold_config
        ids = self.af2_idx_to_esm_idx(aatype, mask)
        visible = aatype
        if masking_pattern is not None:
            hidden = torch.eq(masking_pattern, 1)
            assert self.config.mask_token_id is not None, "masking needs a mask token"
            ids = ids.masked_fill(hidden, self.config.mask_token_id)
            visible = aatype.masked_fill(hidden, MASKED)
        states, maps = self.language(ids)
        if settings.esm_ablate_sequence:
            states = torch.zeros_like(states)
        s: Tensor = self.esm_s_mlp(states)
        if settings.embed_aa:
            s = s + self.embedding(visible)
        if maps is None or settings.esm_ablate_pairwise:
            return s, None
        return s, self.esm_z_mlp(maps)

    def language(self, ids: Tensor) -> tuple[Tensor, Tensor | None]:
        """Token ids (B, R) → states (B, R, D), and attention maps if the trunk uses them."""
        shares = self.esm_s_combine.softmax(0)
        with_maps = self.fold_config.use_esm_attn_map
        if self.fold_config.bypass_lm:
            return shares.new_zeros(*ids.shape, self.config.hidden_size), None
        if not self.offloads:
            return language_model.represent(self.esm, ids, shares, with_maps=with_maps)
        self.esm.to(shares.device)
        try:
            return language_model.represent(self.esm, ids, shares, with_maps=with_maps)
        finally:
            self.esm.cpu()

    def structure_fields(self, structure: dict[str, Tensor], compact: bool) -> dict[str, Any]:
        """Output fields of the structure, the representations and their heads."""
        if compact:
            blocks = ("frames", "angles", "positions")
            return {name: structure[name][-1:] for name in blocks}
        distances = self.distogram_head(structure["s_z"])
        return {
            **structure,
            "distogram_logits": (distances + distances.transpose(1, 2)) / 2,
            "lm_logits": self.lm_head(structure["s_s"]),
        }

    def confidences(
        self, structure: dict[str, Tensor], own: Tensor, chain_index: Tensor, compact: bool
    ) -> dict[str, Any]:
        """Output fields of confidences, over the residues with `own` (B, R) 1."""
        states = structure["states"][-1:] if compact else structure["states"]
        by_bin = self.lddt_head(states).unflatten(-1, (ATOMS, LDDT_BINS))
        by_atom = confidence.plddt(by_bin[-1])
        pairs = confidence.pair_confidences(structure["s_z"], self.ptm_head, own)
        fields: dict[str, Any] = {
            "plddt": by_atom,
            "mean_plddt": confidence.mean_plddt(by_atom, own),
            "ptm": confidence.ptm(pairs.tm, own),
            "iptm": confidence.iptm(pairs.tm, own, chain_index),
            "chain_iptm": confidence.chain_iptm(pairs.tm, own, chain_index),
            "interchain_error": confidence.interchain_error(pairs.error, own, chain_index),
            "predicted_aligned_error": pairs.error,
            "max_predicted_aligned_error": pairs.error.new_tensor(confidence.MAX_ALIGNED_ERROR),
        }
        if compact:
            return fields
        logits = self.ptm_head(structure["s_z"])
        return {
            **fields,
            "lddt_head": by_bin,
            "ptm_logits": logits,
            **confidence.predicted_aligned_error(logits),
        }

    @torch.no_grad()
    def infer(
        self,
        seqs: str | Sequence[str],
        position_ids: Tensor | None = None,
        *,
        num_recycles: int | None = None,
        chunk_size: int | None = KEEP_CHUNK_SIZE,
        compact: bool = False,
        linker: str = LINKER,
        chain_gap: int = CHAIN_GAP,
        offload_stem: bool = False,
        nucleotides: Literal["refuse", "keep"] = "refuse",
    ) -> EsmForProteinFoldingOutput:
        """Fold sequences, chains separated by ":"; letters that are not amino acids become X.

        Lower case, white space and a `*` at the end of a chain are read as `shard` reads them;
        sequences that look like DNA or RNA are refused, or their letters kept as residues.
        position_ids: (R,) or (B, R), linkers included, replace 0, 1, … and the jumps between
        chains; in a batch with complexes, `residue_index` still counts from 0 in each chain.
        chunk_size: as in `trunk.set_chunk_size`, for this call. linker: residues between chains,
        removed from all outputs. chain_gap: jump of residue numbers between chains. offload_stem:
        keep the language model on the device only while it runs. Others as in `forward`. Raises
        InputError.
        """
        sequences = [seqs] if isinstance(seqs, str) else list(seqs)
        inputs = encode_sequences(
            sequences, linker, chain_gap, self.trunk_device, nucleotides=nucleotides
        )
        if position_ids is None:
            position_ids = inputs.position_ids
        with self.chunked(chunk_size), self.offloaded(offload_stem):
            output = self.forward(
                inputs.aatype,
                inputs.attention_mask,
                position_ids.to(inputs.aatype.device),
                num_recycles=num_recycles,
                chain_index=inputs.chain_index,
                own=inputs.own,
                compact=compact,
            )
        if inputs.has_complexes:
            output.residue_index = inputs.residue_index
        return output.select(*inputs.kept()) if inputs.has_linkers else output

    @staticmethod
    def output_to_pdb(output: EsmForProteinFoldingOutput, *, random: bool = False) -> list[str]:
        """The text of a PDB file for each sequence: see `structures.pdb_texts`."""
        return pdb_texts(output, random=random)

    def infer_pdb(self, seqs: str, *args: Any, **kwargs: Any) -> str:
        """The PDB file of one sequence; other arguments as in `infer`. Raises InputError."""
        if not isinstance(seqs, str):
            raise InputError("infer_pdb takes one sequence; use infer_pdbs for several")
        return self.infer_pdbs([seqs], *args, **kwargs)[0]

    def infer_pdbs(self, seqs: Sequence[str], *args: Any, **kwargs: Any) -> list[str]:
        """The PDB files of sequences; other arguments as in `infer`. Raises InputError."""
        random = bool(getattr(self.config, RANDOM, False))
        return self.output_to_pdb(self.infer(seqs, *args, **kwargs), random=random)

    @property
    def trunk_device(self) -> torch.device:
        """Device of the trunk."""
        return self.esm_s_combine.device

    @contextmanager
    def chunked(self, chunk_size: int | None) -> Iterator[None]:
        """Within, the trunk has this chunk size."""
        before = self.trunk.chunk_size
        if chunk_size != KEEP_CHUNK_SIZE:
            self.trunk.set_chunk_size(chunk_size)
        try:
            yield
        finally:
            self.trunk.chunk_size = before

    @contextmanager
    def offloaded(self, wanted: bool) -> Iterator[None]:
        """Within, if `wanted`, the language model is on the device only while it runs."""
        if not wanted:
            yield
            return
        self.offloads = True
        self.esm.cpu()
        try:
            yield
        finally:
            self.offloads = False
            self.esm.to(self.trunk_device)


def mixer(inputs: int, width: int) -> nn.Sequential:
    """Norm and two layers, from the width of the language model to that of the trunk."""
    return nn.Sequential(
        nn.LayerNorm(inputs), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width)
    )


def read_residues(input_ids: Tensor, attention_mask: Tensor | None) -> tuple[Tensor, Tensor]:
    """Residue numbers and mask (B, R) as integers, 0 at padding. Raises InputError."""
    if not isinstance(input_ids, Tensor) or input_ids.ndim != 2 or input_ids.is_floating_point():
        raise InputError("input_ids should be residue numbers (B, R); for one sequence, (1, R)")
    if attention_mask is None:
        attention_mask = input_ids >= 0
    if attention_mask.shape != input_ids.shape:
        raise InputError(
            f"attention_mask has shape {tuple(attention_mask.shape)}, the input "
            f"{tuple(input_ids.shape)}; give one number for each residue"
        )
    mask = attention_mask.bool()
    if not bool(mask[:, 0].all()) or bool((mask[:, 1:] & ~mask[:, :-1]).any()):
        raise InputError(
            "attention_mask: padding should follow each sequence, which has at least one residue"
        )
    aatype = input_ids.masked_fill(~mask, 0)
    if int(aatype.min()) < 0 or int(aatype.max()) >= len(residues.LETTERS):
        raise InputError(
            f"input_ids: residue numbers are 0 to {len(residues.LETTERS) - 1} (X), in the order "
            f"{residues.LETTERS}"
        )
    return aatype.long(), mask.long()
