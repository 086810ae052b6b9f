"""`records.tsv`: the outcome of every record of the input, one row each, in input order.

Tab-separated with a header line, UTF-8, quoted as Python's csv module does by default, so that
headers with tabs and quotes come back as they were. Ids are any text, `NA` and `007` included;
`workflow/docs/results.md` shows how pandas reads them as text. Columns: those of `RECORD_COLUMNS`,
then `{task}_status` and `{task}_reason` of each task that ran. A missing value is empty.
"""

from __future__ import annotations

import csv
import io
import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from esm_pipeline.errors import InputError
from esm_pipeline.files import atomic_path

RECORD_COLUMNS = (
    "index",
    "id",
    "header",
    "length",
    "sha256",
    "status",
    "reason",
    "notes",
    "duplicate_of",
)
STATUSES = OK, SKIPPED, FAILED = "ok", "skipped", "failed"
INDEX = re.compile("[0-9]{1,9}|1[0-9]{9}")
"""An index as text."""

RECORDS_REMEDY = "make it again with the command that wrote it"
REMAKE = "make it again with `esm-pipeline aggregate`"

csv.field_size_limit(2**31 - 1)  # a header may be longer than the module's 128 KiB


class Outcome(NamedTuple):
    """The outcome of a record in one task: `ok`, `skipped` or `failed`, and the reason."""

    status: str
    reason: str = ""


NO_OUTCOMES: Mapping[str, Outcome] = MappingProxyType({})


class Record(NamedTuple):
    """One row of `records.tsv`."""

    index: int  # type: ignore[assignment]  # hides tuple.index, which a row has no use for
    """Position in the input, from 0, over all files of the sample."""
    id: str
    """First word of the header, or `record_{index}` if it is empty."""
    header: str
    """The header line as in the file, without `>`."""
    length: int | None
    """Residues of the cleaned sequence; None if the record is skipped."""
    sha256: str
    """Digest of the cleaned sequence in hexadecimal; empty if the record is skipped."""
    status: str
    """Validation: `ok` or `skipped`."""
    reason: str = ""
    """Why the record is skipped."""
    notes: str = ""
    """What was changed to make the record usable, separated by `; `."""
    duplicate_of: int | None = None
    """Index of the first record with the same cleaned sequence, if that is another record."""
    outcomes: Mapping[str, Outcome] = NO_OUTCOMES
    """The outcome in each task, by the name of the task."""

    def with_outcome(self, task: str, status: str, reason: str = "") -> Record:
        """The same record with its outcome in `task`; the reason is put on one line."""
        outcome = Outcome(status, " ".join(reason.split()))
        return self._replace(outcomes={**self.outcomes, task: outcome})


def read_records(path: str | os.PathLike[str]) -> Iterator[Record]:
    """Stream the rows of a `records.tsv`.

    Raises InputError with file and line for anything that `write_records` would not write.
    """
    with _open_table(path) as handle:
        rows = csv.reader(handle, delimiter="\t", strict=True)
        try:
            tasks = _tasks(next(rows, []))
            for row in rows:
                yield _record(row, tasks)
        except (csv.Error, ValueError) as error:
            raise _malformed(path, rows.line_num, error) from None


def read_tasks(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """Names of the tasks with columns in a `records.tsv`, in the order of the columns."""
    with _open_table(path) as handle:
        try:
            return _tasks(next(csv.reader(handle, delimiter="\t", strict=True), []))
        except (csv.Error, ValueError) as error:
            raise _malformed(path, 1, error) from None


def write_records(
    path: str | os.PathLike[str], records: Iterable[Record], tasks: Sequence[str] = ()
) -> None:
    """Stream `records` into a new `records.tsv`, with the columns of `tasks`.

    A record without an outcome in a task gets empty cells. The file is moved into place when it is
    complete.
    """
    with (
        atomic_path(path) as temporary,
        open(temporary, "w", encoding="utf-8", errors="backslashreplace", newline="") as handle,
    ):
        handle.write(header_line(tasks))
        handle.writelines(_line(record, tasks) for record in records)


def header_line(tasks: Sequence[str] = ()) -> str:
    """The first line of a `records.tsv` with the columns of `tasks`."""
    return format_row(_columns(tasks))


def format_row(fields: Sequence[str]) -> str:
    """Two or more fields as a line, the same as by `csv.writer(delimiter="\t")`."""
    line = "\t".join(fields)
    if line.count("\t") >= len(fields) or '"' in line or "\n" in line or "\r" in line:
        line = "\t".join(map(_quoted, fields))
    return line + "\n"


def parse_lines(lines: Iterable[str]) -> Iterator[Record]:
    """Records from the lines of a `records.tsv` without tasks, after its header line."""
    return (_record(row, ()) for row in csv.reader(lines, delimiter="\t", strict=True))


def read_status(path: str | os.PathLike[str], task: str) -> Iterator[tuple[int, Outcome]]:
    """Stream a status table: the index of each record, and its outcome in the task."""
    with _open_table(path) as handle:
        rows = csv.reader(handle, delimiter="\t", strict=True)
        try:
            if next(rows, None) != status_columns(task):
                raise InputError(f"{path}:1: not the status table of '{task}'; check the path")
            for row in rows:
                if len(row) != 3 or not INDEX.fullmatch(row[0]) or row[1] not in STATUSES:
                    raise ValueError("unexpected cells")
                yield int(row[0]), Outcome(*row[1:])
        except (csv.Error, ValueError) as error:
            place = f"{path}:{max(rows.line_num, 1)}"
            raise InputError(f"{place}: not a row of a status table ({error}); {REMAKE}") from None


def status_columns(task: str) -> list[str]:
    """Column names of a task's status table."""
    return ["index", f"{task}_status", f"{task}_reason"]


def _line(record: Record, tasks: Sequence[str]) -> str:
    length = "" if record.length is None else str(record.length)
    first = "" if record.duplicate_of is None else str(record.duplicate_of)
    fields = [str(record.index), *record[1:3], length, *record[4:8], first]
    for task in tasks:
        fields += record.outcomes.get(task, Outcome(""))
    return format_row(fields)


def _quoted(field: str) -> str:
    if '"' in field or "\t" in field or "\n" in field or "\r" in field:
        return '"' + field.replace('"', '""') + '"'
    return field


def _record(row: Sequence[str], tasks: Sequence[str]) -> Record:
    if len(row) != len(RECORD_COLUMNS) + 2 * len(tasks):
        raise ValueError(f"{len(row)} columns, not {len(RECORD_COLUMNS) + 2 * len(tasks)}")
    index, name, header, length, sha256, status, reason, notes, first = row[: len(RECORD_COLUMNS)]
    extra = row[len(RECORD_COLUMNS) :]
    return Record(
        int(index),
        name,
        header,
        int(length) if length else None,
        sha256,
        status,
        reason,
        notes,
        int(first) if first else None,
        dict(zip(tasks, map(Outcome, extra[::2], extra[1::2]), strict=True)) or NO_OUTCOMES,
    )


def _open_table(path: str | os.PathLike[str]) -> io.TextIOWrapper:
    try:
        return open(path, encoding="utf-8", newline="")
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; check the path") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}); check the path") from None


def _tasks(columns: Sequence[str]) -> tuple[str, ...]:
    tasks = tuple(name.removesuffix("_status") for name in columns[len(RECORD_COLUMNS) :: 2])
    if [*columns] != _columns(tasks):
        raise ValueError("unexpected columns")
    return tasks


def _columns(tasks: Sequence[str]) -> list[str]:
    extra = [f"{task}_{part}" for task in tasks for part in ("status", "reason")]
    return [*RECORD_COLUMNS, *extra]


def _malformed(path: str | os.PathLike[str], line: int, error: Exception) -> InputError:
    return InputError(
        f"{path}:{max(line, 1)}: not a row of records.tsv ({error}); {RECORDS_REMEDY}"
    )
