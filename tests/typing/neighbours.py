"""Find the nearest proteins of one in a file of embeddings."""

from typing import assert_type

import numpy as np
import pandas as pd

from esm_pipeline import InputError, embed, open_results

with open_results("embeddings.h5", "embeddings") as results:
    print(results, len(results), results.keys()[:3])
    print(
        "P84927" in results,
        results["P84927"].length,
        results["P84927"].mean[results.layers[-1]][:3],
    )
    for neighbour in results.nearest("P84927", k=3):
        assert_type(neighbour.similarity, float)
        print(f"{neighbour.id}\t{neighbour.similarity:.3f}\t{neighbour.distance:.2f}")
    query = embed("MKTAYIAKQRQISFVKSHFSRQ", "demo").mean[0]
    print(pd.DataFrame(results.nearest(query, k=3, metric="euclidean")))
    matrix = results.matrix()
    centred = np.asarray(matrix) - np.asarray(matrix).mean(0)
    print(matrix.shape, np.linalg.svd(centred, compute_uv=False)[:2])
    try:
        print(results["P84928"])
    except InputError as error:
        print(error)
