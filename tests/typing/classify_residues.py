"""Classify the residues of sequences by a head that is trained elsewhere."""

from typing import assert_type

import pandas as pd

from esm_pipeline import EsmForTokenClassification, EsmTokenizer, classify, open_results

names = {0: "helix", 1: "strand", 2: "coil"}
model = EsmForTokenClassification.from_pretrained("demo", id2label=names)
table = classify({"P1": "MKTAYIAK"}, model, token_budget=512)
assert_type(table, pd.DataFrame)
print(table.head())

tokenizer = EsmTokenizer.standard()
batch = tokenizer("MKTAYIAK", return_tensors="pt")
probabilities = model(**batch).logits.softmax(-1)[0, 1:-1]
print(probabilities.argmax(-1).tolist())

with open_results("residue_classes.h5", "residue_classes") as results:
    for protein in results:
        assert_type(protein.label, list[str])
        print(protein.id, protein.sequence[:5], protein.label[:5], protein.p.shape)
        break
