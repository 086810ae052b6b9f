# What a user reads of a run. At its end: of failed jobs their own errors and logs, or where the
# results are. With `--quiet rules progress` also a line for each job, in place of Snakemake's own.
import atexit
import logging
import os
import re
import sys
import time

from snakemake.logging import logger
from snakemake.shell import shell

ERROR_LINE = re.compile(r"esm-pipeline(?: [a-z]+)?: ")  # how each line of an error begins
TAIL_BYTES = 1 << 16  # of a log that are read
MOST_FAILURES = 5  # that are shown, each with another error
MOST_LINES = 3  # of an error
INTERRUPTION = "on user request"  # in what Snakemake says of Ctrl-C and SIGTERM
STILL_SHOWN = ("Nothing to be done", "Creating conda", "Downloading and installing")
NOW_SHOWN_AT_THE_END = (
    "Exiting because a job",
    "WorkflowError:\nAt least one job did not",
    "RuleException:\nCalledProcessError in",
)

RUN = workflow.is_main_process and not workflow.dryrun
QUIET = {one.name for one in workflow.output_settings.quiet or ()}
PLAIN = RUN and {"RULES", "PROGRESS"} <= QUIET and "ALL" not in QUIET
BEGUN = time.time()


class JobMessages(logging.Handler):
    """Hears of all jobs: numbers those that start, and keeps those that failed."""

    def __init__(self):
        super().__init__()
        self.total, self.started, self.failed = 0, {}, {}
        self.interrupted = False

    def emit(self, record):
        event = str(getattr(record, "event", None) or "").lower()
        if event == "run_info":
            rules = dict(getattr(record, "stats", {}))
            targets = sum(rules.get(name, 0) for name in ("all", "default"))
            self.total = rules.get("total", 0) - targets
        elif event == "job_info" and record.rule_msg:
            is_new = self.started.setdefault(record.jobid, record.rule_msg) is record.rule_msg
            if PLAIN:
                place = f"{len(self.started)} of {self.total}" if is_new else "again"
                text = re.sub(r"\b0*(\d+)-of-(\d+)\b", r"\1 of \2", record.rule_msg)
                say(f"[{place}] {text}")
        elif record.msg and INTERRUPTION in str(record.msg):
            self.interrupted = True
        elif event == "job_error":
            self.failed[record.jobid] = (record.rule_name, [*record.log])
        elif event == "group_error":
            for one in record.job_error_info:
                self.failed[one["jobid"]] = (one["rule_name"], [*one["log"]])
        elif event == "job_finished":
            self.failed.pop(record.job_id, None)  # another attempt succeeded

    def failures(self):
        """Error -> the failed jobs that have it, each as its message and its log."""
        found = {}
        for jobid, (rule_name, logs) in self.failed.items():
            error, log = error_of(rule_name, logs)
            job = self.started.get(jobid, rule_name)
            found.setdefault(error, []).append((job, log))
        return found


JOBS = JobMessages()


def say(text):
    """Print lines to standard error, unless it is closed."""
    try:
        print(text, file=sys.stderr, flush=True)
    except (OSError, ValueError):
        pass


def error_of(rule_name, logs):
    """The error of a failed job, in a few lines, and the log that has it."""
    logs = logs or ["?"]
    if rule_name == "verdict":
        counts = tail_of(f"{OUT}/verdict.txt")[-1:] or ["some records failed"]
        text = f"{counts[0]}: all results are written, and these are the records without one"
        return f"{text}; set on_failure to 'keep' to accept this", f"{OUT}/verdict.txt"
    for log in logs:
        lines = tail_of(log)
        if errors := [line for line in lines if ERROR_LINE.match(line)]:
            return "\n".join(ERROR_LINE.sub("", line) for line in errors[-MOST_LINES:]), log
        if any(line.startswith("Traceback (") for line in lines):
            return f"{lines[-1]} (an error of this program; please report it with the log)", log
    return "ended without a message, as a job that is killed when memory or time runs out", logs[0]


def tail_of(path):
    """The last lines of a file that are not empty; none if it cannot be read."""
    try:
        with open(path, "rb") as file:
            file.seek(max(0, os.path.getsize(path) - TAIL_BYTES))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()]


def at_the_end(text):
    """Print `text` when Snakemake has written its last line."""
    atexit.register(say, text)


def report_failures():
    """Print what failed, why, where the logs are, and what to do."""
    found = JOBS.failures()
    if JOBS.interrupted:  # the jobs that were running did not fail by themselves
        at_the_end("\nInterrupted. The same command continues the run: what is finished is kept.")
        return
    if not found:
        return
    count = sum(map(len, found.values()))
    lines = ["", f"{count:,} job{'s' if count > 1 else ''} failed:"]
    for error, jobs in [*found.items()][:MOST_FAILURES]:
        job, log = jobs[0]
        more = f" (and {len(jobs) - 1:,} more with this error)" if len(jobs) > 1 else ""
        lines += [f"  {job}{more}", *(f"    {line}" for line in error.splitlines())]
        lines.append(f"    log: {log}")
    if len(found) > MOST_FAILURES:
        lines.append(f"  … and {len(found) - MOST_FAILURES:,} other errors; see {OUT}/logs")
    if {rule_name for rule_name, _ in JOBS.failed.values()} != {"verdict"}:
        lines.append("Correct this and run the same command again: what is finished is kept.")
    at_the_end("\n".join(lines))


def report_results():
    """Print where the results are, if this run completed them."""
    accepted = f"{OUT}/.accepted"
    if not os.path.exists(accepted) or os.path.getmtime(accepted) < BEGUN - 1:
        return
    lines = ["", *tail_of(f"{OUT}/verdict.txt")] if PLAIN else [""]
    lines += [
        f"Results: {OUT}",
        f"  {OUT}/report.html   counts and pictures, for a browser",
        f"  {OUT}/verdict.txt   counts, and why records were skipped or failed",
    ]
    at_the_end("\n".join(lines))


class OnlyOurs(logging.Filter):
    """Lets warnings, errors and a few messages of Snakemake through."""

    def filter(self, record):
        message = record.getMessage() if record.msg else ""
        if record.levelno < logging.WARNING:
            return message.startswith(STILL_SHOWN)
        return not message.startswith(NOW_SHOWN_AT_THE_END)


if RUN:
    logger.addHandler(JOBS)
if PLAIN:
    for handler in logger.handlers:
        if isinstance(handler, logging.StreamHandler) and not isinstance(
            handler, logging.FileHandler
        ):
            handler.addFilter(OnlyOurs())
    # of what jobs print, only what tells of hours: the rest is in their logs
    shell.prefix(
        "set -euo pipefail; exec > >(grep --line-buffered -E ' (left|(min|h) so far)$') 2>&1; "
    )


onsuccess:
    if RUN:
        report_results()


onerror:
    if RUN:
        report_failures()
