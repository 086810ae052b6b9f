"""Compare the results in a folder with the digests in `provenance.json`.

Each file is read once, in several threads. The digests of structures and pictures are in lists;
their folders may contain no other file, hidden or not, except those of Snakemake or a running
command. Prints a line for each file that differs; exit code 0 if none does, 1 if one does, 2 if the
folder has no results. Files that are not of this run are named, and do not count as differences.
"""

from __future__ import annotations

import argparse
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.flags import number_of_threads
from esm_pipeline.formats.checksums import read_list, sha256
from esm_pipeline.formats.fasta import shown
from esm_pipeline.locks import Outputs
from esm_pipeline.settings.result_names import (
    ACCEPTED,
    PROVENANCE,
    PROVENANCE_LIST,
    VERDICT,
    listed_folders,
    not_of_this_run,
)
from esm_pipeline.tasks.common.progress import Advance, Amounts, progress

PROVENANCE_FORMAT = "esm-pipeline/provenance"
MISSING, DIFFERS = "missing", "differs"
TOGETHER = 64  # small files that a thread checks at a time
TRANSIENT = re.compile(
    r"\.snakemake_timestamp|\.DS_Store|\.nfs[0-9a-f]+|(\..+)?\.lock|\..+-[0-9]{1,10}\.[a-z0-9_]{8}"
)
"""Hidden files that come and go: of Snakemake, the Finder, NFS, and running commands."""

MALFORMED = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError)


class ListedFile(NamedTuple):
    """A result: its path in the folder, its digest, and what to remove to make it again."""

    name: str
    digest: str
    source: str
    folders: tuple[str, ...] = ()
    """The folders that it describes, in that of its sample, if it is a list of digests."""


EXAMPLES = (
    (
        "esm-pipeline verify results",
        "a line for each file of a finished run that has changed since",
    ),
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags of `verify`."""
    parser.add_argument("folder", metavar="RESULTS", type=Path, help="folder with provenance.json")
    parser.add_argument(
        "--threads", type=number_of_threads, default=0, help="threads (default: one a core)"
    )
    parser.add_argument("--quiet", action="store_true", help="print only what differs")


def outputs(args: argparse.Namespace) -> Outputs:
    """What `verify` writes: nothing."""
    return Outputs()


def run(args: argparse.Namespace) -> int:
    """Check; returns the exit code. Raises InputError if the folder has no results."""
    marks = (PROVENANCE, PROVENANCE_LIST, VERDICT, ACCEPTED)
    if not any((args.folder / name).exists() for name in marks):
        raise InputError(f"{args.folder}: not a folder of results; give one with a {PROVENANCE}")
    check = FolderCheck(args.folder, args.threads if args.threads > 0 else os.cpu_count() or 1)
    facts = check.check_provenance()
    if facts:
        check.check_results(facts, quiet=args.quiet)
    if not args.quiet:
        for name in paths_of_other_runs(args.folder, facts) if facts else ():
            print(f"{shown(str(args.folder / name))}: not of this run, and not checked")
        differing = f"{check.different:,}" if check.different else "none"
        verb = "differ" if check.different > 1 else "differs"
        files = "file" if check.count == 1 else "files"
        print(f"verify: {check.count:,} {files} checked, {differing} {verb}")
    return 1 if check.different else 0


LISTED_BYTES = 100_000
"""The time that a file in a list takes, in bytes of a large file."""


class FolderCheck:
    """The check of a folder: how many files were checked, and how many differ."""

    def __init__(self, folder: Path, threads: int) -> None:
        self.folder, self.threads = folder, threads
        self.count = self.different = 0

    def report(self, name: str, what: str, source: str) -> None:
        """Print that a file differs, and what to remove to make it again."""
        self.different += 1
        place, again = (shown(str(self.folder / path)) for path in (name, source))
        remedy = "" if what == MISSING and name == source else f"remove {again} and "
        print(f"{place}: {what}; {remedy}run the workflow again", flush=True)

    def cost_of(self, file: ListedFile) -> float:
        """The time that reading a result takes, in bytes."""
        path = self.folder / file.name
        return LISTED_BYTES + (path.stat().st_size if path.is_file() else 0)

    def check_provenance(self) -> dict[str, Any] | None:
        """The contents of `provenance.json`; None if it cannot be read."""
        self.count += 1
        path, listing = self.folder / PROVENANCE, self.folder / PROVENANCE_LIST
        if not path.is_file():
            self.report(PROVENANCE, MISSING, PROVENANCE)
            return None
        try:
            digest = {name: digest for digest, name in read_list(listing)}.get(PROVENANCE)
        except InputError:
            digest = None
        if digest is None:
            why = "does not have the digest of" if listing.exists() else "missing, next to"
            self.report(PROVENANCE_LIST, f"{why} {PROVENANCE}", PROVENANCE)
        elif sha256(path) != digest:
            self.report(PROVENANCE, DIFFERS, PROVENANCE)
        try:
            facts: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            list(listed_files(facts))
            facts["settings"]["tasks"]
        except MALFORMED:
            if not self.different:
                self.report(PROVENANCE, "does not have the digests of results", PROVENANCE)
            return None
        return facts

    def check_results(self, facts: dict[str, Any], *, quiet: bool) -> None:
        """Check all results in `provenance.json`."""
        files = list(listed_files(facts))
        lists = [file for file in files if file.folders]
        listed = sum(count_lines(self.folder / file.name) for file in lists)
        work = LISTED_BYTES * listed + sum(self.cost_of(file) for file in files)
        amounts = Amounts(len(files) + listed, "files", work=work)
        with progress("verify", amounts, quiet=quiet, short=True) as advance:
            problems = self.check_files(files, 1, advance)
            for file in lists:
                if file.name not in problems:
                    self.check_listed(file.name, file.folders, advance)

    def check_listed(self, listing: str, folders: Sequence[str], advance: Advance) -> None:
        """Check the files in a list, and that their folders contain no others.

        Their names are kept in memory only if there are others.
        """
        path = self.folder / listing
        sample = PurePosixPath(listing).parent
        files = (
            ListedFile(str(sample / name), digest, listing) for digest, name in read_list(path)
        )
        problems = self.check_files(files, TOGETHER, advance)
        tops = [self.folder / folder for folder in folders]
        there = sum(1 for _ in walk(tops))
        if there == count_lines(path) - sum(what == MISSING for what in problems.values()):
            return
        names = {os.path.join(path.parent, name) for _, name in read_list(path)}
        for found in sorted(set(walk(tops)) - names):
            what = f"not in {PurePosixPath(listing).name}"
            self.report(os.path.relpath(found, self.folder), what, listing)

    def check_files(
        self, files: Iterable[ListedFile], together: int, advance: Advance
    ) -> dict[str, str]:
        """Check files, `together` of them in a thread at a time; returns what is wrong, by name."""
        problems = {}

        def compare(some: list[ListedFile]) -> list[tuple[ListedFile, str]]:
            return [(file, problem(self.folder / file.name, file.digest)) for file in some]

        rest = iter(files)
        batches = iter(lambda: list(islice(rest, together)), [])
        for done in in_threads(compare, batches, self.threads):
            costs = (
                LISTED_BYTES if file.source != file.name else self.cost_of(file) for file, _ in done
            )
            advance(len(done), work=sum(costs))
            self.count += len(done)
            for file, what in done:
                if what:
                    problems[file.name] = what
                    self.report(file.name, what, file.source)
        return problems


def in_threads(
    compare: Callable[[list[ListedFile]], list[tuple[ListedFile, str]]],
    batches: Iterable[list[ListedFile]],
    threads: int,
) -> Iterator[list[tuple[ListedFile, str]]]:
    """The results of `compare` for all batches, in their order; few batches wait at a time."""
    waiting: deque[Future[list[tuple[ListedFile, str]]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            waiting.append(pool.submit(compare, batch))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def problem(path: Path, digest: str) -> str:
    """What is wrong with a file; empty if it has this digest."""
    try:
        return "" if sha256(path) == digest else DIFFERS
    except FileNotFoundError:
        return MISSING
    except OSError as error:
        return f"cannot be read ({error.strerror})"


def listed_files(facts: dict[str, Any]) -> Iterator[ListedFile]:
    """The results in `provenance.json`. Raises one of `MALFORMED` for other contents."""
    if facts["format"] != PROVENANCE_FORMAT:
        raise ValueError("another format")
    for sample, contents in (("", facts), *facts["samples"].items()):
        for name, result in contents["results"].items():
            place = PurePosixPath(sample, name)
            if place.is_absolute() or ".." in place.parts:
                raise ValueError("a file elsewhere")
            folders = tuple(str(PurePosixPath(sample, one)) for one in listed_folders(name))
            yield ListedFile(str(place), str(result["sha256"]), str(place), folders)


def paths_of_other_runs(folder: Path, facts: dict[str, Any]) -> Iterator[str]:
    """What is in the folder and not among the results of the run."""
    samples = {}
    for sample, contents in facts["samples"].items():
        folders = [one for name in contents["results"] for one in listed_folders(name)]
        samples[sample] = [*contents["results"], *folders]
    return not_of_this_run(folder, facts["results"], samples, facts["settings"]["tasks"])


def walk(folders: Iterable[Path]) -> Iterator[str]:
    """Paths of all files in some folders, without transient ones."""
    for top in folders:
        for place, _, names in os.walk(top):
            yield from (
                os.path.join(place, name) for name in names if not TRANSIENT.fullmatch(name)
            )


def count_lines(path: Path) -> int:
    """The number of lines of a file, 0 if it is missing."""
    if not path.is_file():
        return 0
    with open(path, "rb") as handle:
        return sum(1 for _ in handle)
