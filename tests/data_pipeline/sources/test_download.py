"""Downloads from local servers that fail in the ways that real servers do."""

import hashlib
import io
import json
import os
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from data_pipeline.errors import DataError
from data_pipeline.files import locked
from data_pipeline.sources.download import download_dataset, download_file


def archive(seed: int) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, noise=np.random.default_rng(seed).bytes(300_000))
    return buffer.getvalue()


CONTENT = archive(0)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@dataclass
class Mirror:
    """A server's contents and faults, and the requests that it got."""

    files: dict[str, bytes] = field(default_factory=lambda: {'d-v0.npz': CONTENT})
    headers: dict[str, str] = field(default_factory=lambda: {'ETag': '"1"'})
    breaks_at: list[int] = field(default_factory=list)
    """Bytes after which the next responses break off."""
    ranges: list[str | None] = field(default_factory=list)
    redirect: str = ''
    url: str = ''


@pytest.fixture
def serve() -> Iterator[Callable[..., Mirror]]:
    """serve(mirror, TLS context or None): starts it and sets its `url`."""
    servers = []

    def start(mirror: Mirror, context: ssl.SSLContext | None = None) -> Mirror:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                if mirror.redirect:
                    self.send_response(302)
                    self.send_header('Location', mirror.redirect + self.path)
                    for name, value in mirror.headers.items():
                        self.send_header(name, value)
                    self.send_header('Content-Length', '0')
                    self.end_headers()
                    return
                content = mirror.files.get(self.path[1:])
                if content is None:
                    self.send_error(404)
                    return
                asked = self.headers['Range']
                mirror.ranges.append(asked)
                start = 0
                if asked and self.headers['If-Range'] == mirror.headers.get('ETag'):
                    start = int(asked.removeprefix('bytes=').removesuffix('-'))
                    self.send_response(206)
                    self.send_header(
                        'Content-Range', f'bytes {start}-{len(content) - 1}/{len(content)}'
                    )
                else:
                    self.send_response(200)
                for name, value in mirror.headers.items():
                    self.send_header(name, value)
                self.send_header('Content-Length', str(len(content) - start))
                self.end_headers()
                end = start + mirror.breaks_at.pop(0) if mirror.breaks_at else len(content)
                self.wfile.write(content[start:end])

            def log_message(self, *arguments: object) -> None:
                pass

        server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
        if context is not None:
            server.socket = context.wrap_socket(server.socket, server_side=True)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        mirror.url = f'{"https" if context else "http"}://127.0.0.1:{server.server_port}/{{file}}'
        return mirror

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def visible(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith('.'))


def test_download_and_record(serve, tmp_path):
    mirror = serve(Mirror())
    calls: list[tuple[int, int]] = []
    path = download_file(
        'd-v0.npz', tmp_path / 'new', [mirror.url], lambda *call: calls.append(call)
    )
    assert path.read_bytes() == CONTENT
    assert json.loads((tmp_path / 'new' / 'd-v0.npz.json').read_text()) == {
        'url': mirror.url.format(file='d-v0.npz'),
        'bytes': len(CONTENT),
        'sha256': SHA256,
        'verified': False,
    }
    assert visible(tmp_path / 'new') == ['d-v0.npz', 'd-v0.npz.json']
    assert (calls[0], calls[-1]) == ((0, len(CONTENT)), (len(CONTENT), len(CONTENT)))
    download_file('d-v0.npz', tmp_path / 'new', [])  # It is there.


def test_both_files_of_a_dataset(serve, tmp_path):
    mirror = serve(Mirror(files={'d-v0.npz': CONTENT, 'd-v0-val.npz': archive(1)}))
    path = download_dataset('d-v0', tmp_path, [mirror.url])
    assert path == tmp_path / 'd-v0.npz'
    assert (tmp_path / 'd-v0-val.npz').read_bytes() == archive(1)


def test_goes_on_within_a_call(serve, tmp_path):
    mirror = serve(Mirror(breaks_at=[100_000, 50_000]))
    path = download_file('d-v0.npz', tmp_path, [mirror.url])
    assert path.read_bytes() == CONTENT
    assert mirror.ranges == [None, 'bytes=100000-', 'bytes=150000-']


def test_goes_on_in_another_call(serve, tmp_path):
    mirror = serve(Mirror(breaks_at=[100_000, 0]))
    with pytest.raises(DataError, match='ended early, at byte 100000'):
        download_file('d-v0.npz', tmp_path, [mirror.url])
    assert (tmp_path / 'd-v0.npz.part').stat().st_size == 100_000
    assert not (tmp_path / 'd-v0.npz').exists()
    path = download_file('d-v0.npz', tmp_path, [mirror.url])
    assert path.read_bytes() == CONTENT
    assert mirror.ranges[-1] == 'bytes=100000-'
    assert visible(tmp_path) == ['d-v0.npz', 'd-v0.npz.json']


def test_starts_again_when_the_file_has_changed(serve, tmp_path):
    mirror = serve(Mirror(files={'d-v0.npz': archive(1)}, breaks_at=[100_000, 0]))
    with pytest.raises(DataError, match='ended early'):
        download_file('d-v0.npz', tmp_path, [mirror.url])
    mirror.files, mirror.headers = {'d-v0.npz': CONTENT}, {'ETag': '"2"'}
    assert download_file('d-v0.npz', tmp_path, [mirror.url]).read_bytes() == CONTENT
    assert mirror.ranges[-1] == 'bytes=100000-'  # A part was requested; the whole came.


def test_parts_of_two_mirrors_are_not_mixed(serve, tmp_path):
    first = serve(Mirror(files={'d-v0.npz': archive(1)}, breaks_at=[100_000, 0]))
    second = serve(Mirror())
    path = download_file('d-v0.npz', tmp_path, [first.url, second.url])
    assert path.read_bytes() == CONTENT
    assert second.ranges == [None]


def test_goes_on_where_the_part_is_from(serve, tmp_path):
    """The first mirror was down when the download began."""
    first, second = serve(Mirror(files={})), serve(Mirror(breaks_at=[100_000, 0]))
    mirrors = [first.url, second.url]
    with pytest.raises(DataError, match=r'HTTP 404.*ended early, at byte 100000'):
        download_file('d-v0.npz', tmp_path, mirrors)
    first.files['d-v0.npz'] = CONTENT
    assert download_file('d-v0.npz', tmp_path, mirrors).read_bytes() == CONTENT
    assert first.ranges == []
    assert second.ranges[-1] == 'bytes=100000-'


def test_without_a_validator_it_starts_again(serve, tmp_path):
    mirror = serve(Mirror(headers={'ETag': 'W/"1"'}, breaks_at=[100_000]))
    assert download_file('d-v0.npz', tmp_path, [mirror.url]).read_bytes() == CONTENT
    assert mirror.ranges == [None, None]


def test_mirrors_in_turn(serve, tmp_path):
    absent, good = serve(Mirror(files={})), serve(Mirror())
    down = 'http://127.0.0.1:9/{file}'
    path = download_file('d-v0.npz', tmp_path, [down, absent.url, good.url])
    assert path.read_bytes() == CONTENT


def test_no_mirror_at_all(serve, tmp_path):
    absent = serve(Mirror(files={}))
    down = 'http://127.0.0.1:9/{file}'
    with pytest.raises(DataError) as caught:
        download_file('d-v0.npz', tmp_path, [down, absent.url])
    message = str(caught.value)
    assert 'http://127.0.0.1:9/d-v0.npz (no connection' in message
    assert f'{absent.url.format(file="d-v0.npz")} (HTTP 404)' in message
    assert '--source' in message
    assert '\n' not in message
    assert visible(tmp_path) == []


@pytest.mark.parametrize('is_right', [True, False])
def test_published_checksum_is_compared(serve, tmp_path, is_right):
    """As Hugging Face gives it, in the response that redirects to the file."""
    store = serve(Mirror(headers={}))
    published = SHA256 if is_right else '0' * 64
    front = serve(
        Mirror(
            headers={'X-Linked-Etag': f'"{published}"'}, redirect=store.url.removesuffix('/{file}')
        )
    )
    if is_right:
        download_file('d-v0.npz', tmp_path, [front.url])
        assert json.loads((tmp_path / 'd-v0.npz.json').read_text())['verified']
        return
    with pytest.raises(DataError, match=f'SHA-256 is {SHA256}, not 000'):
        download_file('d-v0.npz', tmp_path, [front.url])
    assert not (tmp_path / 'd-v0.npz').exists()
    assert not (tmp_path / 'd-v0.npz.part').exists()


def test_what_no_digest_verifies_is_reported(serve, tmp_path):
    lines: list[str] = []
    path = download_file('d-v0.npz', tmp_path, [serve(Mirror()).url], note=lines.append)
    assert len(lines) == 1
    for part in ('d-v0.npz', 'not verified', '127.0.0.1', SHA256):
        assert part in lines[0]
    path.unlink()
    verified = serve(Mirror(headers={'ETag': '"1"', 'X-Linked-Etag': f'"{SHA256}"'}))
    download_file('d-v0.npz', tmp_path, [verified.url], note=lines.append)
    assert len(lines) == 1


def test_a_redirect_to_http_is_not_followed(serve, tmp_path, monkeypatch):
    certificate, key = tmp_path / 'certificate.pem', tmp_path / 'key.pem'
    command = ['openssl', 'req', '-x509', '-newkey', 'rsa:2048', '-nodes', '-days', '2', '-subj']
    command += ['/CN=127.0.0.1', '-addext', 'subjectAltName=IP:127.0.0.1']
    command += ['-keyout', str(key), '-out', str(certificate)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f'no certificate can be made: {error}')
    monkeypatch.setenv('SSL_CERT_FILE', str(certificate))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    plain = serve(Mirror())
    secure = serve(Mirror(), context)
    download_file('d-v0.npz', tmp_path / 'direct', [secure.url])
    secure.redirect = plain.url.removesuffix('/{file}')
    with pytest.raises(DataError, match='redirects from https to http'):
        download_file('d-v0.npz', tmp_path / 'redirected', [secure.url])
    assert plain.ranges == []
    plain.redirect = serve(Mirror()).url.removesuffix('/{file}')
    download_file('d-v0.npz', tmp_path / 'plain', [plain.url])


def test_a_web_page_is_no_dataset(serve, tmp_path):
    page = serve(Mirror(files={'d-v0.npz': b'<html>Please log in</html>'}))
    good = serve(Mirror())
    assert download_file('d-v0.npz', tmp_path, [page.url, good.url]).read_bytes() == CONTENT
    (tmp_path / 'd-v0.npz').unlink()
    with pytest.raises(DataError, match=r'not an \.npz file'):
        download_file('d-v0.npz', tmp_path, [page.url])


def test_two_downloads_at_once(tmp_path):
    with (
        locked(tmp_path / '.d-v0.npz.lock', 'downloads this file'),
        pytest.raises(DataError, match='another process downloads'),
    ):
        download_file('d-v0.npz', tmp_path, [])


def test_complete_part_needs_no_server(serve, tmp_path):
    """As after a kill between the last byte and the renaming."""
    mirror = serve(Mirror())
    path = download_file('d-v0.npz', tmp_path, [mirror.url])
    os.rename(path, tmp_path / 'd-v0.npz.part')
    record = {'url': mirror.url.format(file='d-v0.npz'), 'validator': '"1"', 'sha256': None}
    (tmp_path / 'd-v0.npz.part.json').write_text(json.dumps({**record, 'size': len(CONTENT)}))
    assert download_file('d-v0.npz', tmp_path, [mirror.url]).read_bytes() == CONTENT
    assert len(mirror.ranges) == 1
