"""How the work of `embed` grows with the sequences."""

from esm_pipeline.formats.bundles import Work
from esm_pipeline.tasks.common.work import forward_cost

EMBED_WORK = Work(forward_cost)
