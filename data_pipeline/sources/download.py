"""Downloads of OGBench's files: from several mirrors, continued after interruptions, verified."""

import http.client
import os
import re
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from data_pipeline.errors import DataError
from data_pipeline.files import file_sha256, locked, make_folder, sync_path, write_json
from data_pipeline.progress import Progress
from data_pipeline.schema import read_json

MIRRORS = (
    'https://rail.eecs.berkeley.edu/datasets/ogbench/{file}',
    'https://huggingface.co/datasets/zhouzypaul/ogbench_datasets/resolve/main/{file}',
)
TIMEOUT = 30.0  # seconds without an answer or a byte

_BLOCK_BYTES = 1 << 20
_SHA256 = re.compile(r'"?([0-9a-f]{64})"?')
# What a connection can raise besides OSError, which includes URLError and timeouts.
_CONNECTION_ERRORS = (OSError, http.client.HTTPException)


class _TransferError(Exception):
    """A mirror did not deliver the file; the message says why."""


@dataclass(frozen=True)
class _Part:
    """The origin of a `.part` file: one URL with one version of its contents."""

    url: str
    validator: str
    """ETag or Last-Modified; the server compares it before it continues."""
    size: int
    sha256: str | None
    """The server's checksum, if it publishes one."""


def download_dataset(
    name: str,
    folder: Path,
    mirrors: Sequence[str] | None = None,
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Path:
    """Download an OGBench dataset, NAME.npz and NAME-val.npz; return the path of the first.

    Existing files in the folder are kept, and a `FILE.part` is continued.

    Args:
        name: OGBench's name of the dataset.
        folder: where the files go.
        mirrors: URLs with `{file}` in place of the file's name, tried in turn; default `MIRRORS`.
        progress: called as `progress(done_bytes, total_bytes)` of the current file.
        note: called with a line on each file whose server publishes no SHA-256.

    Raises:
        DataError: no mirror delivers the file, the disk is full, or another process downloads it.
    """
    for file in (f'{name}-val.npz', f'{name}.npz'):
        path = download_file(file, folder, mirrors or MIRRORS, progress, note)
    return path


def download_file(
    file: str,
    folder: Path,
    mirrors: Sequence[str],
    progress: Progress | None = None,
    note: Callable[[str], None] | None = None,
) -> Path:
    """Download one file as `download_dataset` does, and write its SHA-256 to `FILE.json`.

    Before the file gets its name, its size is checked, its SHA-256 if the server publishes it, and
    that it is a zip archive. Redirects from https to http are not followed.
    """
    path = Path(folder) / file
    if path.exists():
        return path
    report = progress or (lambda done, total: None)
    reasons = []
    try:
        make_folder(path.parent)
        with locked(path.with_name(f'.{file}.lock'), 'downloads this file'):
            if path.exists():
                return path
            for url in _urls(path, mirrors):
                try:
                    record = _download_from(url, path, report)
                except _TransferError as error:
                    reasons.append(f'{url} ({error})')
                    continue
                if note and not record['verified']:
                    note(
                        f'{file}: not verified, as {urlsplit(url).hostname} publishes no checksum; '
                        f'SHA-256 {record["sha256"]}'
                    )
                return path
    except OSError as error:
        raise DataError(f'{path}: cannot be written: {error.strerror or error}') from error
    raise DataError(
        f'{file} could not be downloaded from {" nor from ".join(reasons)}; run the command again '
        'to continue the download, or get the file elsewhere and name it with --source'
    )


def _urls(path: Path, mirrors: Sequence[str]) -> list[str]:
    """The file's URLs, that of its `.part` first, since any other starts from 0."""
    known = _read_record(path.with_name(f'{path.name}.part'))
    urls = [mirror.format(file=path.name) for mirror in mirrors]
    return sorted(urls, key=lambda url: known is None or url != known.url)


def _download_from(url: str, path: Path, report: Progress) -> dict[str, Any]:
    """Get the file from one mirror; reconnect as long as each connection delivers data.

    Returns:
        The record of the file.
    """
    part_file = path.with_name(f'{path.name}.part')
    while True:
        had = _part_size(part_file)
        try:
            part = _transfer(url, part_file, report)
        except _TransferError:
            if _part_size(part_file) <= had:
                raise
            continue
        break
    digest = file_sha256(part_file)
    if part.sha256 not in (None, digest):
        part_file.unlink()
        raise _TransferError(f'SHA-256 is {digest}, not {part.sha256}')
    if not zipfile.is_zipfile(part_file):  # For instance, an error page of a gateway.
        part_file.unlink()
        raise _TransferError('the download is not an .npz file')
    record = {'url': url, 'bytes': part.size, 'sha256': digest, 'verified': part.sha256 is not None}
    write_json(path.with_name(f'{path.name}.json'), record)
    sync_path(part_file)
    os.replace(part_file, path)
    _record_path(part_file).unlink()
    return record


def _transfer(url: str, part_file: Path, report: Progress) -> _Part:
    """Get the missing bytes of a `.part` file in one connection."""
    known = _read_record(part_file)
    start = _part_size(part_file) if known and known.url == url and known.validator else 0
    if known and start == known.size:
        return known
    headers = {'User-Agent': 'fql-pixels', 'Accept-Encoding': 'identity'}
    if known and start:
        # If the contents have changed since, the response is the whole new file.
        headers |= {'Range': f'bytes={start}-', 'If-Range': known.validator}
    with _connect(url, headers) as (response, published):
        continues = response.status == 206 and start > 0
        if not continues:
            start = 0
        part = _Part(
            url=url,
            validator=_validator(response.headers),
            size=_whole_size(response, start),
            sha256=published,
        )
        write_json(_record_path(part_file), asdict(part))
        with open(part_file, 'ab' if continues else 'wb') as file:
            _copy(response, file, start, part.size, report)
    return part


@contextmanager
def _connect(url: str, headers: dict[str, str]) -> Iterator[tuple[Any, str | None]]:
    """An open response with the file's bytes, and its SHA-256 if a server on the way gave one."""
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)
    try:
        response = opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        raise _TransferError(f'HTTP {error.code}') from error
    except urllib.error.URLError as error:
        raise _TransferError(f'no connection: {error.reason}') from error
    except _CONNECTION_ERRORS as error:
        raise _TransferError(f'no connection: {error or type(error).__name__}') from error
    with response:
        # Hugging Face gives it in its redirect; a plain ETag of this form is taken for one too.
        named = [redirects.sha256, response.headers.get('X-Linked-Etag', '')]
        matches = [match for name in named if (match := _SHA256.fullmatch(name or ''))]
        yield response, matches[0][1] if matches else None


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Keeps the headers of redirects that describe the file."""

    sha256: str = ''

    def redirect_request(
        self, req: Any, fp: Any, code: Any, msg: Any, headers: Any, url: Any
    ) -> Any:
        if req.type == 'https' and urlsplit(url).scheme != 'https':
            raise _TransferError(f'redirects from https to {urlsplit(url).scheme}')
        self.sha256 = headers.get('X-Linked-Etag', self.sha256)
        return super().redirect_request(req, fp, code, msg, headers, url)


def _validator(headers: Any) -> str:
    """The identifier of this version of the contents; weak ETags do not identify one."""
    etag = headers.get('ETag', '')
    return headers.get('Last-Modified', '') if not etag or etag.startswith('W/') else etag


def _whole_size(response: Any, start: int) -> int:
    """Bytes of the whole file, of which the response holds those from `start` on."""
    if start and not response.headers.get('Content-Range', '').startswith(f'bytes {start}-'):
        raise _TransferError(f'the server does not continue at byte {start}')
    length = response.headers.get('Content-Length')
    if length is None:
        raise _TransferError('the server does not give the size')
    return start + int(length)


def _copy(response: Any, file: IO[bytes], done: int, size: int, report: Progress) -> None:
    report(done, size)
    while done < size:
        try:
            block = response.read(min(_BLOCK_BYTES, size - done))
        except _CONNECTION_ERRORS as error:
            raise _TransferError(f'ended early, at byte {done} of {size}: {error}') from error
        if not block:
            raise _TransferError(f'ended early, at byte {done} of {size}')
        file.write(block)
        done += len(block)
        report(done, size)


def _record_path(part_file: Path) -> Path:
    return part_file.with_name(f'{part_file.name}.json')


def _part_size(part_file: Path) -> int:
    return part_file.stat().st_size if part_file.exists() else 0


def _read_record(part_file: Path) -> _Part | None:
    try:
        return read_json(_record_path(part_file), _Part)
    except (FileNotFoundError, ValueError):
        return None
