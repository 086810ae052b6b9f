"""Score a deep mutational scan, and compare it with the measurements."""

from typing import assert_type

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from esm_pipeline import EsmForMaskedLM, optimize_for_inference, score

WILD_TYPE = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIE"
scan = pd.DataFrame(
    {"mutant": ["M1A", "K2R", "T3S:A4G", "A99G"], "DMS_score": [0.1, 0.9, 0.7, 0.5]}
)

scored = score(scan, "demo", sequence=WILD_TYPE)
assert_type(scored, pd.DataFrame)
print(scored[["mutant", "status", "reason", "masked_marginal"]])
print(scored["DMS_score"].rank().corr(scored["masked_marginal"].rank()))

model = optimize_for_inference(EsmForMaskedLM.from_pretrained("demo"))
assert_type(model, EsmForMaskedLM)
quick = score(["M1A", "K2R"], model, sequence=WILD_TYPE, strategy="wt_marginal")
assert_type(quick, NDArray[np.float64])
print(quick.round(2), quick.argmax())
several = score(["M12A"], {"one": "demo", "two": model}, sequences={"P1": WILD_TYPE}, offset=11)
print(several)
