"""Score every substitution of a protein, and read those of a file."""

from typing import assert_type

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_pipeline import open_results, saturation

found = saturation({"P1": "MKTAYIAK"}, "demo")
heat = found["P1"].to_pandas()
assert_type(heat, pd.DataFrame)
print(heat.round(1), found.table["mutant"].iloc[0])

with open_results("saturation.h5", "saturation") as results:
    protein = results[0]
    assert_type(protein.log_odds, NDArray[np.float32])
    tolerance = protein.log_odds.mean(1)
    print(protein.sequence[int(tolerance.argmax())], results.alphabet, results.strategy)
