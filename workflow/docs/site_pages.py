"""The pages of the site, for mkdocs: all pages of the repository, at their places in it.

So a relative link leads to the same page here and on GitHub. mkdocs would otherwise read a single
folder, and every file in it, results and environments too.
"""

from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("*", "config/*", "workflow/*/*", "workflow/*/*/*", "esm_pipeline/**/*", "tests/**/*")
SHOWN = {".md", ".png", ".svg"}
LINKED = {".yaml", ".tsv", ".fasta", ".ipynb", ""}
"""Files that pages link to, without tests."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Return the pages, their pictures, and the few other files that they link to."""
    found = sorted({path for place in PLACES for path in ROOT.glob(place) if path.is_file()})
    return Files(
        [
            File.generated(config, path.relative_to(ROOT).as_posix(), abs_src_path=str(path))
            for path in found
            if path.suffix in (SHOWN if "tests" in path.parts else SHOWN | LINKED)
        ]
    )
