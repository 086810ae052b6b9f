"""Wild type, position and mutant in several columns, also those of VEP, as one notation."""

from __future__ import annotations

import pytest

from esm_pipeline.errors import InputError
from esm_pipeline.formats.mutation_columns import notation
from esm_pipeline.formats.mutations import mutate, parse, resolve

WILD_TYPE = "MKVLAGKSTW"

READ = {
    ("2", "L", "K"): "MLVLAGKSTW",
    (" 2 ", " l ", "k"): "MLVLAGKSTW",
    ("2.0", "L", "K"): "MLVLAGKSTW",
    ("2", "Leu", "Lys"): "MLVLAGKSTW",
    ("2/10", "K/L", None): "MLVLAGKSTW",
    ("2", "K / L", None): "MLVLAGKSTW",
    ("2", "K", "K"): WILD_TYPE,
    ("2", "=", "K"): WILD_TYPE,
    ("2", "K", None): WILD_TYPE,
    ("2-3", "KV/KA", None): "MKALAGKSTW",
    ("2-3/10", "KV/K", None): "MKLAGKSTW",
    ("2-4", "KVL/-", None): "MAGKSTW",
    ("2", "K/-", None): "MVLAGKSTW",
    ("2", "-", "K"): "MVLAGKSTW",
    ("2", "del", "K"): "MVLAGKSTW",
    ("2", "K/KAL", None): "MKALVLAGKSTW",
    ("2", "AL", "K"): "MALVLAGKSTW",
    ("2-4", "KVL", None): WILD_TYPE,
    ("2-4", "QQ", "KVL"): "MQQAGKSTW",
}


@pytest.mark.parametrize(("cells", "mutant"), READ.items())
def test_what_is_read(cells, mutant):
    assert mutate(resolve(parse(notation(*cells)), WILD_TYPE), WILD_TYPE) == mutant


REFUSED = {
    ("-", "-", None): "no position; the variant changes no residue, leave it out",
    ("", "K/L", None): "no position; the variant changes no residue, leave it out",
    ("NA", "L", "K"): "no position; the variant changes no residue, leave it out",
    ("?-2", "K/L", None): "position '?-2' is not known exactly; leave it out",
    ("2-May", "KV/K", None): "position '2-May' cannot be read; write 42",
    ("2.5", "L", "K"): "position '2.5' cannot be read; write 42",
    ("K2", "L", "K"): "position 'K2' cannot be read; write 42",
    ("2", "-", None): "no amino acids; the variant changes no residue, leave it out",
    ("2", "", "K"): "no mutant residue; leave the row out, or write its residue",
    ("2", "L?", None): "amino acids 'L?' cannot be read; write A/V",
    ("2-3", "-/L", None): "no residue of the wild type to compare; write an insertion as K23_L24in",
    ("2", "L", ""): "no residue of the wild type to compare",
    ("2", "KV/L", None): "position 2 is of one residue, but 'KV' is not; write 20-21 and AL",
    ("2-4", "KV/L", None): "names 2 residues in the place of 3; correct one of the two",
    ("2", "K/*", None): "mutation 'K2*' is a stop",
    ("2", "Stop", "K"): "mutation 'K2*' is a stop",
    ("2-3", "KV/*", None): "is a stop",
    ("2", "K/X", None): "leads to X, which is no single amino acid",
    ("2", "fs", "K"): "mutation 'K2fs' is a frame shift",
    ("0", "L", "K"): "residue 0 does not exist: the protein has 10 residues",
    ("3", "L", "K"): "residue 3 is V, not K",
    ("3", "K", None): "residue 3 is V, not K",
    ("11", "K/L", None): "residue 11 does not exist",
}


@pytest.mark.parametrize(("cells", "reason"), REFUSED.items())
def test_what_is_not_has_its_reason(cells, reason):
    with pytest.raises(InputError) as refused:
        resolve(parse(notation(*cells)), WILD_TYPE)
    assert reason in str(refused.value)
