"""How the work of `classify` grows with the sequences."""

from esm_pipeline.formats.bundles import Work
from esm_pipeline.tasks.common.work import forward_cost

CLASSIFY_WORK = Work(forward_cost)
