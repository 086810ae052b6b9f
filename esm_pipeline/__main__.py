"""`python -m esm_pipeline TASK …`, the same as `esm-pipeline TASK …`."""

import sys

from esm_pipeline.cli import main

if __name__ == "__main__":
    sys.exit(main())
