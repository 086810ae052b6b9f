"""`python -m esm_pipeline TASK …`, the same as `esm-pipeline TASK …`.

Ctrl-C during the imports ends the command with one line too.
"""

import sys


def main() -> int:
    """Run one task and return the exit code."""
    try:
        from esm_pipeline import cli

        return cli.main()
    except KeyboardInterrupt:
        print("esm-pipeline: interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
