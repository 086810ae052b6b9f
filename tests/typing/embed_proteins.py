"""Embed sequences, and the rows of a data frame."""

from typing import assert_type

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_pipeline import embed

result = embed(
    {"P1": "MKTAYIAKQRQISFVKSHFSRQ", "P2": "MLSDEDFKAVF"},
    "demo",
    include=["mean", "residue", "contacts"],
    token_budget=2048,
)
assert_type(result.mean, NDArray[np.float32])
print(result.ids, result.mean.shape, [one.shape for one in result.residue])
print(result["P1"].contacts.max(), result.at(-1).mean.std())
for name, status in zip(result.records["id"], result.records["status"], strict=True):
    print(name, status)

frame = pd.DataFrame({"sequence": ["MKTAYIAK", "MLSDEDFKAVF"], "host": ["E. coli", "human"]})
table = embed(frame, "demo", layers=[0, -1])
assert_type(table, pd.DataFrame)
print(frame.join(table).groupby("host").size())
