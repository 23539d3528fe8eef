"""Models from Hugging Face, through huggingface_hub, into its own cache (HF_HOME); HF_HUB_OFFLINE=1 keeps it offline.

The library resumes a broken connection, but since version 1 no longer a process that was killed (its
`_download_to_tmp_and_move` uses a new file each time). So the bytes are fetched here into a file that stays, checked
against the hub's SHA-256, and put where the library looks for them (`blobs/ETAG`); it then only links them.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from node import disk
from node.errors import BackendError, ConclaveError, InvalidRequest, NotFound, NotReady, Unauthenticated
from node.models import partial, split

log = logging.getLogger(__name__)

# What is taken where nobody asked for a quantization: the plan's, then the next best that a repository has.
PREFERRED = ("Q4_K_M", "Q4_K_S", "Q5_K_M", "Q4_0", "Q6_K", "Q8_0", "MXFP4", "BF16", "F16")
_REPO = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_CHUNK = 1 << 22
ASK_S = 4.0  # for what is good to know and not needed


@dataclass(frozen=True, slots=True)
class Reference:
    """What `hf:OWNER/NAME[:QUANT]` or `hf:OWNER/NAME/FILE.gguf` means."""

    repo: str
    quantization: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a repository; `sha256` is empty where the hub does not say."""

    name: str
    size: int
    sha256: str = ""


def parse(text: str) -> Reference:
    """Read a reference. Raises InvalidRequest."""
    body = text.removeprefix("hf:")
    file = ""
    if body.endswith(".gguf") and body.count("/") >= 2:
        owner, name, file = body.split("/", 2)
        body = f"{owner}/{name}"
    repo, _, quantization = body.partition(":")
    if not _REPO.fullmatch(repo) or (quantization and not re.fullmatch(r"[\w.-]{1,32}", quantization)):
        raise InvalidRequest(f"{text!r} is no repository: write hf:OWNER/NAME, hf:OWNER/NAME:Q4_K_M or …/FILE.gguf")
    return Reference(repo, quantization, file)


def choose(files: Sequence[RemoteFile], reference: Reference) -> list[RemoteFile]:
    """The files of a repository that a reference means: one model, all its parts. Raises NotFound."""
    models = [f for f in files if f.name.endswith(".gguf") and not re.search(r"mmproj|imatrix", f.name, re.IGNORECASE)]
    if reference.file:
        first = [f for f in models if f.name == reference.file]
    else:
        wanted = (reference.quantization,) if reference.quantization else PREFERRED
        first = next((found for each in wanted if (found := [f for f in models if is_of(f.name, each)])), [])
        if not first and not reference.quantization and len(models) == 1:
            first = models
    if not first:
        has = ", ".join(sorted({m.group() for f in models if (m := _QUANT.search(f.name))})[:12]) or "no GGUF file"
        raise NotFound(
            f"{reference.repo} has no {reference.file or reference.quantization or 'usual type'}: it has {has}"
        )
    names = {str(p) for p in split.parts(Path(first[0].name))}
    return [f for f in models if f.name in names]


QUANTIZATION = r"(?:I?Q\d\w*|BF16|F16|F32|MXFP4\w*)"
_QUANT = re.compile(rf"{QUANTIZATION}(?=[.-]|$)", re.IGNORECASE)


def is_of(name: str, quantization: str) -> bool:
    """Whether a file's name says this quantization, in whatever letters and with whatever around it."""
    return bool(re.search(rf"(?:^|[-._/]){re.escape(quantization)}(?:[-._/]|$)", name, re.IGNORECASE))


def pull(
    reference: Reference,
    notice: Callable[[str], None],
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> Path:
    """Fetch a model, or what is missing of it; its first file. Raises ConclaveError with one line.

    `progress` is told what is fetched, and how much of it is there (0..1).
    """
    import huggingface_hub
    from huggingface_hub import constants

    with _errors(reference):
        info = huggingface_hub.HfApi().model_info(reference.repo, files_metadata=True)
        files = [RemoteFile(s.rfilename, s.size or 0, str(s.lfs.sha256) if s.lfs else "") for s in info.siblings or ()]
        chosen = choose(files, reference)
        total = sum(f.size for f in chosen)
        folder = Path(constants.HF_HUB_CACHE)
        partial.check_space(folder, _missing(folder, reference.repo, chosen), reference.repo, "set HF_HOME to another")
        notice(f"{reference.repo}: {', '.join(f.name for f in chosen)}, {total / 1e9:.2f} GB")
        for file in chosen:
            _fetch(reference.repo, file, str(info.sha), progress)
        paths = [huggingface_hub.hf_hub_download(reference.repo, file.name, revision=info.sha) for file in chosen]
    return min(Path(path) for path in paths)


def sums(repo: str) -> dict[str, tuple[int, str]]:
    """Bytes and SHA-256 of a repository's GGUF files, by their names without folders; those that it does not say, and
    all where the hub cannot be asked within `ASK_S`, are left out."""
    import huggingface_hub

    try:
        info = huggingface_hub.HfApi().model_info(repo, files_metadata=True, timeout=ASK_S)
    except Exception as e:  # offline, no network, no such repository: what is not known is not compared
        log.info("%s is not compared with the hub: %s", repo, _first_line(e))
        return {}
    found = {}
    for each in info.siblings or ():
        sha256 = str(each.lfs.sha256) if each.lfs else ""
        if each.rfilename.endswith(".gguf") and each.size and re.fullmatch(r"[0-9a-f]{64}", sha256):
            found[each.rfilename.rpartition("/")[2]] = (each.size, sha256)
    return found


class _Bar:
    """In place of the library's own bar, which it tells of each piece; it shows nothing where no terminal is."""

    def __init__(self, file: RemoteFile, start: int, progress: Callable[[str, float], None]) -> None:
        self._file, self._have, self._progress = file, start, progress

    def update(self, size: int) -> None:
        self._have += size
        self._progress(f"fetching {self._file.name}", self._have / max(self._file.size, 1))


def _missing(cache: Path, repo: str, files: Sequence[RemoteFile]) -> int:
    """Bytes of files that are not in the cache yet, whole or in part, as far as their hashes tell."""
    from huggingface_hub.file_download import repo_folder_name

    blobs = cache / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    left = 0
    for file in files:
        here = 0
        for path in (blobs / file.sha256, blobs / f"{file.sha256}.conclave.incomplete") if file.sha256 else ():
            with contextlib.suppress(OSError):
                here = max(here, path.stat().st_size)
        left += max(file.size - here, 0)
    return left


def _fetch(repo: str, file: RemoteFile, revision: str, progress: Callable[[str, float], None]) -> None:
    """Bring a file's bytes into the cache, from where an earlier attempt ended."""
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name
    from huggingface_hub.utils._headers import build_hf_headers

    url = hf_hub_url(repo, file.name, revision=revision)
    etag = get_hf_file_metadata(url).etag or ""
    if not re.fullmatch(r"[\w-]{8,128}", etag):
        return  # the library knows what to do
    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type="model") / "blobs"
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / etag).exists():
        return
    part = folder / f"{etag}.conclave.incomplete"
    with part.open("ab") as out:
        try:
            fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise NotReady(f"{file.name} is being fetched by another process: wait for it") from None
        start = part.stat().st_size
        if start > file.size:
            out.truncate(0)
            start = 0
        if start < file.size:
            bar: Any = _Bar(file, start, progress)
            http_get(url, out, resume_size=start, headers=build_hf_headers(), expected_size=file.size, _tqdm_bar=bar)
        out.flush()
        disk.sync(out.fileno())
        _check(part, file)
        part.rename(folder / etag)


def cached(reference: Reference) -> Path | None:
    """The first file of a model that is in the cache as a whole; None if it is not."""
    import huggingface_hub

    try:
        found = huggingface_hub.scan_cache_dir()
    except Exception:  # CacheNotFound, or a cache of a format that this version does not know
        return None
    for repo in found.repos:
        if repo.repo_id != reference.repo:
            continue
        for revision in sorted(repo.revisions, key=lambda r: -r.last_modified):
            here = {f.file_path.relative_to(revision.snapshot_path).as_posix(): f for f in revision.files}
            files = [RemoteFile(name, f.size_on_disk) for name, f in here.items()]
            with contextlib.suppress(NotFound):
                chosen = choose(files, reference)
                if len(chosen) == len(split.parts(Path(chosen[0].name))):
                    return min(here[f.name].file_path for f in chosen)
    return None


def _check(path: Path, file: RemoteFile) -> None:
    """Against what the hub says; a file that differs is removed, so that the next attempt fetches it anew."""
    digest = hashlib.sha256()
    with path.open("rb") as f:
        while block := f.read(_CHUNK):
            digest.update(block)
    if path.stat().st_size != file.size or (file.sha256 and digest.hexdigest() != file.sha256):
        path.unlink()
        raise BackendError(f"{file.name} came damaged (its SHA-256 is not the hub's) and was removed: pull it again")


@contextlib.contextmanager
def _errors(reference: Reference) -> Any:
    """huggingface_hub's errors as ours, each with what to do."""
    from huggingface_hub import errors

    where = f"https://huggingface.co/{reference.repo}"
    try:
        yield
    except errors.GatedRepoError:
        raise Unauthenticated(
            f"{reference.repo} is gated: accept its terms at {where}, then set HF_TOKEN (or `hf auth login`)"
        ) from None
    except errors.RepositoryNotFoundError:
        raise NotFound(
            f"{reference.repo} is not on the hub, or is private: look at {where}; a private one needs HF_TOKEN"
        ) from None
    except errors.OfflineModeIsEnabled:
        raise NotReady(
            f"HF_HUB_OFFLINE is set and {reference.repo} is not in the cache: unset it to download, or give a file"
        ) from None
    except (errors.HfHubHTTPError, errors.EntryNotFoundError) as e:
        raise NotReady(f"the hub refused {reference.repo}: {_first_line(e)}; try again later") from None
    except ConclaveError:
        raise
    except Exception as e:  # of the network; which classes there are depends on the HTTP library beneath
        raise NotReady(
            f"{reference.repo} could not be fetched ({_first_line(e)}): check the network and pull again, it resumes"
        ) from None


def _first_line(e: BaseException) -> str:
    return (str(e).strip().splitlines() or [type(e).__name__])[0][:200]
