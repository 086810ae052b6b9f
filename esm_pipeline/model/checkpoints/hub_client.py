"""Files of the Hugging Face hub, by its own library, with errors in one line and digests checked.

`snapshot_download` resolves branches, lists, downloads, resumes and caches. Three things stay here:
a first request with a time limit, because the library waits for its first answer without one; the
digest of each file, because the library compares sizes only; and the wording of errors. The library
is imported inside the functions: it is slow to import, and most runs do not need it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from logging import CRITICAL
from pathlib import Path
from typing import Any, TypeAlias

from esm_pipeline.errors import CapacityError, EsmPipelineError, WeightsError

COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"(?!.*\.\.)\w[\w./+@#-]*")
LOG_IN = "`hf auth login`, or a token in HF_TOKEN"
NO_FOLDER = "no such folder"
RUN_AGAIN = "run the same command again"
PATIENCE = 10.0
"""Seconds that the first answer may take."""

SMALL = 1 << 20
"""Bytes up to which a file is checked after every request, because it costs nothing."""

WatchDownload: TypeAlias = Callable[[int, int], None]
"""Called, from any thread, with the bytes that are written and those of all files."""

DOWNLOAD_WATCHER: ContextVar[tuple[WatchDownload | None, bool]] = ContextVar(
    "DOWNLOAD_WATCHER", default=(None, True)
)
"""Who is told about downloads, and whether the library may draw its bars."""


def snapshot(name: str, files: Sequence[str], **options: Any) -> Path:
    """The folder in the cache with those of `files` that the hub model `name` has.

    The name of the folder is the commit. If the hub cannot be reached, or no longer has the model,
    the cached folder is used. `options`: revision, cache_dir, local_files_only, token. Raises
    WeightsError, or CapacityError if the disk is full.
    """
    from huggingface_hub import snapshot_download

    held = folder = cached(name, files, options)
    if is_offline(options):
        if held is None:
            raise WeightsError(not_in_cache(name, options))
        return held
    pinned = COMMIT.fullmatch(options.get("revision") or "")
    problem = None if pinned and held else why_unreachable(name, options)
    if problem is not None:
        if held is None:
            raise explained(name, problem, options, first=True) from None
        return held
    known = blobs_in(held)
    try:
        with quiet():
            folder = Path(
                snapshot_download(
                    name, allow_patterns=[*files], tqdm_class=download_bars(), **options
                )
            )
    except client_errors() as error:
        raise explained(name, error, options, files) from None
    finally:  # also if only one of several files failed
        require_digests(name, blobs_in(folder), known)
    return folder


def cached(name: str, files: Sequence[str], options: dict[str, Any]) -> Path | None:
    """The cached folder of a hub model, even if it lacks some of `files`; None if there is none.

    Raises WeightsError for an impossible name or revision, and for an unreadable cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    if not REVISION.fullmatch(options.get("revision") or "main"):
        raise WeightsError(f"{name}: revision {options['revision']!a} is no commit, tag or branch")
    where: dict[str, Any] = {key: options.get(key) for key in ("cache_dir", "revision")}
    try:
        return Path(
            snapshot_download(name, allow_patterns=[*files], local_files_only=True, **where)
        )
    except LocalEntryNotFoundError as error:
        folder = getattr(error, "snapshot_path", None)  # of an incomplete snapshot
        return None if folder is None else Path(folder)
    except client_errors() as error:
        raise explained(name, error, options) from None


def is_offline(options: dict[str, Any]) -> bool:
    """Whether only the cache may be used: `local_files_only`, or HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return bool(options.get("local_files_only") or constants.HF_HUB_OFFLINE)


def why_unreachable(name: str, options: dict[str, Any]) -> Exception | None:
    """Why the hub does not answer a first request about a model; None if it does."""
    from huggingface_hub import HfApi

    errors: tuple[type[Exception], ...] = (*client_errors(), KeyError, TypeError)
    try:
        with quiet():
            api = HfApi(token=options.get("token"))
            api.model_info(name, revision=options.get("revision") or "main", timeout=PATIENCE)
    except errors as error:  # KeyError and TypeError: the JSON is not that of a hub
        return error
    return None


def client_errors() -> tuple[type[Exception], ...]:
    """What the library raises: its own errors are errors of its HTTP library and OSErrors."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, ValueError, RuntimeError)


def blobs_in(folder: Path | None) -> dict[Path, str]:
    """The file in the cache that a link in a snapshot points to → the name of the link."""
    if folder is None or not folder.is_dir():
        return {}
    links = [path for path in folder.iterdir() if path.is_symlink() and path.is_file()]
    return {Path(os.path.normpath(path.parent / os.readlink(path))): path.name for path in links}


def require_digests(name: str, blobs: dict[Path, str], known: Iterable[Path]) -> None:
    """Compare files with the digests that name them in the cache, unless they are `known`.

    Raises WeightsError if one differs; all that differ are removed.
    """
    wrong: dict[str, tuple[str, str]] = {}
    for blob, file in blobs.items():
        if blob in known and blob.stat().st_size > SMALL:
            continue
        found = digest_like(blob)
        if len(blob.name) == len(found) and blob.name != found:
            wrong[file] = found, blob.name
            blob.unlink()
    for file, (found, listed) in wrong.items():
        raise WeightsError(
            f"{name}: {file} came with the digest {found[:12]}…, but the hub lists it with "
            f"{listed[:12]}…; it was removed: {RUN_AGAIN}"
        )


def digest_like(blob: Path) -> str:
    """The digest of a file, of the kind that names it: SHA-1 as computed by git, or SHA-256."""
    with open(blob, "rb") as handle:
        if not COMMIT.fullmatch(blob.name):
            return hashlib.file_digest(handle, "sha256").hexdigest()
        git = hashlib.sha1(b"blob %d\0" % blob.stat().st_size, usedforsecurity=False)
        return hashlib.file_digest(handle, lambda: git).hexdigest()


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the library's log and warnings: an error here says the same in one line."""
    from huggingface_hub.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


@contextmanager
def watched_downloads(watch: WatchDownload | None, *, bars: bool) -> Iterator[None]:
    """Call `watch` while files are downloaded within; without `bars`, draw none on a terminal."""
    token = DOWNLOAD_WATCHER.set((watch, bars))
    try:
        yield
    finally:
        DOWNLOAD_WATCHER.reset(token)


def download_bars() -> type:
    """The library's progress bars: hidden unless a terminal shows them, and watched."""
    from huggingface_hub.utils import tqdm  # type: ignore[attr-defined]

    watch, shown = DOWNLOAD_WATCHER.get()

    class Bar(tqdm):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            own = str(kwargs.get("name") or "")
            counts = kwargs.get("unit") == "B" and not own.endswith(".transfer")
            self._watch, self._done = watch if counts else None, 0
            disable = kwargs.pop("disable", None)  # None: hidden unless a terminal shows them
            disable = disable if shown else True
            super().__init__(*args, **kwargs, disable=disable)  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            """Count what was written, whether or not the bar is drawn."""
            self._done += int(n or 0)
            if self._watch and self._done:
                self._watch(self._done, max(self._done, int(self.total or 0)))
            return super().update(n)  # type: ignore[no-any-return]

    return Bar


def not_in_cache(name: str, options: dict[str, Any]) -> str:
    """The message for a model that is not in the cache while the hub may not be used."""
    revision = f" --revision {options['revision']}" if options.get("revision") else ""
    return (
        f"{name}: {NO_FOLDER}, and not in the cache {cache_folder(options)}; this is offline: "
        f"fetch it once by esm-pipeline download --model {name}{revision}"
    )


def explained(
    name: str,
    error: BaseException,
    options: dict[str, Any],
    files: Sequence[str] = (),
    *,
    first: bool = False,
) -> EsmPipelineError:
    """The error to raise for one of the library, which was raised while `files` were downloaded.

    The message for the `first` request begins with "no such folder", because a name that the hub
    does not know may be a mistyped path.
    """
    from huggingface_hub.errors import LocalEntryNotFoundError

    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        error = error.__cause__
    if isinstance(error, OSError) and error.errno is not None:
        return disk_error(name, error, options, files)
    status = getattr(getattr(error, "response", None), "status_code", None)
    message = (
        no_answer(name, error) if status is None else error_answer(name, error, status, options)
    )
    known = type(error).__name__ in ("RevisionNotFoundError", "GatedRepoError")
    if first and not known and not message.startswith(NO_FOLDER):
        message = f"{NO_FOLDER}, and {message}"
    return WeightsError(f"{name}: {message}")


def cache_folder(options: dict[str, Any]) -> str:
    """The folder of the cache."""
    from huggingface_hub import constants

    return os.fspath(options.get("cache_dir") or constants.HF_HUB_CACHE)


def disk_error(
    name: str, error: OSError, options: dict[str, Any], files: Sequence[str]
) -> EsmPipelineError:
    """The error for a cache that cannot be written."""
    cache = cache_folder(options)
    what = files[0] if len(files) == 1 else "its files"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CapacityError(
            f"{name}: no space for {what} in the cache {cache} ({error.strerror}); free some, or "
            "set HF_HOME to a folder on a larger disk"
        )
    return WeightsError(
        f"{name}: the cache {cache} cannot be used ({error.strerror}); set HF_HOME to a folder "
        "of yours"
    )


def no_answer(name: str, error: BaseException) -> str:
    """The message if there was no answer, or not one of the hub."""
    kind, why = type(error).__name__, (str(error).splitlines() or ["no answer"])[0]
    if kind == "HFValidationError":
        return f"{NO_FOLDER}, and not a hub id"
    if kind in ("FileMetadataError", "JSONDecodeError", "KeyError", "TypeError"):
        return "what answered is not the hub; check the proxy, or HF_ENDPOINT if it is set"
    if kind == "ProxyError":
        return f"the proxy blocks the hub ({why}); check HTTPS_PROXY"
    if "Consistency check failed" in why:
        return f"the download is incomplete; {RUN_AGAIN}"
    if kind == "ReadTimeout":
        return f"the hub does not answer in time; check the network, and {RUN_AGAIN}"
    if kind in ("RemoteProtocolError", "ReadError"):
        return f"the connection to the hub broke ({why}); check the network, and {RUN_AGAIN}"
    if kind in ("RuntimeError", "ValueError"):
        return f"the download failed ({why}); {RUN_AGAIN}"
    return (
        f"the hub was not reached ({why}); check network and proxy, or fetch it elsewhere: "
        f"esm-pipeline download --model {name}"
    )


def error_answer(name: str, error: BaseException, status: int, options: dict[str, Any]) -> str:
    """The message for an answer that is an error."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    if isinstance(error, RevisionNotFoundError):
        return f"no revision '{options.get('revision')}' on the hub"
    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{name}"
        return f"access is restricted; accept its licence at {page}, then {LOG_IN}"
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{NO_FOLDER}, and no such public model on the hub; check the spelling, or if it is "
            f"private {LOG_IN}"
        )
    if status in (401, 403):
        return f"the hub refuses the token ({status}); renew it, with the right to read: {LOG_IN}"
    if status == 429:
        return f"the hub accepts no more requests for now (429); wait some minutes, or {LOG_IN}"
    if status >= 500:
        return f"the hub is out of order ({status}); try again later"
    return f"the hub answers {status} ({(str(error).splitlines() or [''])[0]})"
