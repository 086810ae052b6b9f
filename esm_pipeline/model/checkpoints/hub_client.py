"""Files of the Hugging Face hub: asked for once, checked by their digest, told of in one line.

The hub's own client downloads, resumes and caches. Around it stand here: a first request that fails
fast and says why, the digest of what came, and errors in the words of this project. The client is
imported where it is needed, which is late.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging import CRITICAL
from pathlib import Path
from typing import Any

from esm_pipeline.errors import CapacityError, EsmPipelineError, WeightsError

COMMIT = re.compile(r"[0-9a-f]{40}")
REVISION = re.compile(r"(?!.*\.\.)\w[\w./+@#-]*")
LOG_IN = "`hf auth login`, or a token in HF_TOKEN"
NO_FOLDER = "no such folder"
AGAIN = "run the same again"
PATIENCE = 10.0
"""Seconds that the first answer may take; the client's own retries would make it six minutes."""

SMALL = 1 << 20
"""Bytes up to which a file is checked every time the hub is asked, for it costs nothing."""


def is_offline(options: dict[str, Any]) -> bool:
    """Whether only the cache may be used: `local_files_only`, or HF_HUB_OFFLINE."""
    from huggingface_hub import constants

    return bool(options.get("local_files_only") or constants.HF_HUB_OFFLINE)


def cached(name: str, file: str, **options: Any) -> Path | None:
    """A file of a hub model in the cache, None if it is not there. Raises WeightsError."""
    found = look_up(name, file, options)
    return Path(found) if isinstance(found, str) else None


def look_up(name: str, file: str, options: dict[str, Any]) -> Any:
    """What the cache knows of a file: its path, that the model has none (an object), or None."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    if not REVISION.fullmatch(options.get("revision") or "main"):
        raise WeightsError(f"{name}: revision {options['revision']!a} is no commit, tag or branch")
    where = {key: options.get(key) for key in ("cache_dir", "revision")}
    try:
        return try_to_load_from_cache(name, file, **where)
    except HFValidationError as error:
        raise explained(name, file, error, options) from None


def fetch_first(name: str, file: str, **options: Any) -> Path | None:
    """As `fetch`, for the first file of a model: the hub is asked once, and fails fast.

    Where it is out of reach, or no longer has the model, a cached file will do. Raises WeightsError
    if there is none.
    """
    found = cached(name, file, **options)
    if is_offline(options):
        if found is None:
            revision = f" --revision {options['revision']}" if options.get("revision") else ""
            raise WeightsError(
                f"{name}: {NO_FOLDER}, and not in the cache {cache_folder(options)}; this is "
                f"offline: fetch it once by esm-pipeline download --model {name}{revision}"
            )
        return found
    if found is not None and COMMIT.fullmatch(options.get("revision") or ""):
        return found
    problem = ask(name, file, options)
    if problem is not None and found is None:
        raise explained(name, file, problem, options, first=True) from None
    return fetch(name, file, **options) if problem is None else found


def ask(name: str, file: str, options: dict[str, Any]) -> Exception | None:
    """What keeps the hub from telling about a file; None if nothing, or if it has no such file."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url
    from huggingface_hub.errors import EntryNotFoundError

    try:
        with quiet():
            url = hf_hub_url(name, file, revision=options.get("revision"))
            get_hf_file_metadata(url, token=options.get("token"), timeout=PATIENCE)
    except EntryNotFoundError:
        return None
    except client_errors() as error:
        return error
    return None


def fetch(name: str, file: str, **options: Any) -> Path | None:
    """One file of a hub model, from the cache or the hub; None if the model has no such file.

    `options`: revision, cache_dir, local_files_only, token. Raises WeightsError, or CapacityError
    where the disk is full; what came is then not left in the cache.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    known = look_up(name, file, options)
    held = COMMIT.fullmatch(options.get("revision") or "") and known is not None
    if held or is_offline(options):
        return Path(known) if isinstance(known, str) else None
    try:
        with quiet():
            path = Path(hf_hub_download(name, file, **options))
    except LocalEntryNotFoundError as error:  # the answer failed, and nothing is in the cache
        raise explained(name, file, error.__cause__ or error, options) from None
    except EntryNotFoundError:
        return None
    except client_errors() as error:
        raise explained(name, file, error, options) from None
    if not isinstance(known, str) or path.stat().st_size <= SMALL:
        require_digest(name, file, path)
    return path


def client_errors() -> tuple[type[Exception], ...]:
    """What the client raises: its own errors are its HTTP library's and OSErrors at once."""
    from huggingface_hub.errors import HfHubHTTPError

    return (*HfHubHTTPError.__bases__, ValueError, RuntimeError)


def require_digest(name: str, file: str, path: Path) -> None:
    """Check a file that came against the digest that names it in the cache: SHA-256 or git's.

    Raises WeightsError if it is another's, and removes it. Without links nothing names the file.
    """
    if not path.is_symlink():
        return
    blob = path.parent / os.readlink(path)
    size = blob.stat().st_size
    with open(blob, "rb") as handle:
        if COMMIT.fullmatch(blob.name):
            git = hashlib.sha1(b"blob %d\0" % size, usedforsecurity=False)
            found = hashlib.file_digest(handle, lambda: git).hexdigest()
        else:
            found = hashlib.file_digest(handle, "sha256").hexdigest()
    if len(blob.name) == len(found) and blob.name != found:
        path.unlink()
        blob.unlink()
        raise WeightsError(
            f"{name}: {file} came with the digest {found[:12]}…, but the hub tells "
            f"{blob.name[:12]}…; it was removed: {AGAIN}"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log of the client where nobody watches; its bars hide themselves."""
    from huggingface_hub.utils import logging

    if sys.stderr.isatty():
        yield
        return
    before = logging.get_verbosity()
    logging.set_verbosity(CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.set_verbosity(before)


def explained(
    name: str, file: str, error: BaseException, options: dict[str, Any], *, first: bool = False
) -> EsmPipelineError:
    """The error to raise for what the client raised.

    Of the `first` file of a name, which may be that of a folder, mistyped, it begins with that.
    """
    if isinstance(error, OSError) and error.errno is not None:
        return disk_error(name, file, error, options)
    status = getattr(getattr(error, "response", None), "status_code", None)
    told = refusal(name, error) if status is None else answer(name, error, status, options)
    known = type(error).__name__ in ("RevisionNotFoundError", "GatedRepoError")
    if first and not known and not told.startswith(NO_FOLDER):
        told = f"{NO_FOLDER}, and {told}"
    return WeightsError(f"{name}: {told}")


def cache_folder(options: dict[str, Any]) -> str:
    """Where the cache lies."""
    from huggingface_hub import constants

    return os.fspath(options.get("cache_dir") or constants.HF_HUB_CACHE)


def disk_error(name: str, file: str, error: OSError, options: dict[str, Any]) -> EsmPipelineError:
    """What to say of a cache that cannot be written."""
    cache = cache_folder(options)
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return CapacityError(
            f"{name}: no space for {file} in the cache {cache} ({error.strerror}); free some, or "
            "set HF_HOME to a folder on a larger disk"
        )
    return WeightsError(
        f"{name}: the cache {cache} cannot be used ({error.strerror}); set HF_HOME to a folder "
        "of yours"
    )


def refusal(name: str, error: BaseException) -> str:
    """What to say where no answer came, or none of the hub's."""
    kind, why = type(error).__name__, (str(error).splitlines() or ["no answer"])[0]
    if kind == "HFValidationError":
        return f"{NO_FOLDER}, and not a hub id"
    if kind == "FileMetadataError":
        return "what answered is not the hub; check the proxy, or HF_ENDPOINT if it is set"
    if kind == "ProxyError":
        return f"the proxy does not let the hub be reached ({why}); check HTTPS_PROXY"
    if "Consistency check failed" in why:
        return f"the download is not whole; {AGAIN}"
    if kind == "ReadTimeout":
        return f"the hub does not answer in time; check the network, and {AGAIN}"
    if kind in ("RemoteProtocolError", "ReadError"):
        return f"the connection to the hub broke ({why}); check the network, and {AGAIN}"
    if kind in ("RuntimeError", "ValueError"):
        return f"the download failed ({why}); {AGAIN}"
    return (
        f"the hub was not reached ({why}); check network and proxy, or fetch it elsewhere: "
        f"esm-pipeline download --model {name}"
    )


def answer(name: str, error: BaseException, status: int, options: dict[str, Any]) -> str:
    """What to say of an answer that is an error."""
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
        return f"the hub takes no more requests for now (429); wait some minutes, or {LOG_IN}"
    if status >= 500:
        return f"the hub is out of order ({status}); try again later"
    return f"the hub answers {status} ({(str(error).splitlines() or [''])[0]})"
