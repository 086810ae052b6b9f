"""Go through results of any kind."""

from esm_pipeline import open_results
from esm_pipeline.formats.results.embeddings import Embeddings
from esm_pipeline.formats.results.structures import Structures

for path in ("embeddings.h5", "saturation.h5", "structures.h5"):
    with open_results(path) as results:
        print(results, results.attributes["format"])
        for record in results:
            print(record.id, record.index, record.length)
        if isinstance(results, Embeddings):
            print(results.to_pandas().shape, results[0].mean.keys())
        if isinstance(results, Structures):
            print(results[0].structure.mean_plddt, results[0].pae.shape, results[0].flags)

with open_results("structures.h5", "structures") as folded:
    print(folded.to_pandas()["plddt"].mean())
