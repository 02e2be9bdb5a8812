"""`fql prepare` and `fql export-tfds`: from every source, and from invalid ones."""

import functools
import hashlib
import itertools
import json
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds

from data_pipeline.data_dir import collected_file, compilation_cache_dir
from data_pipeline.store.manifest import FORMAT_VERSION
from fql.envs.tasks import QUICKSTART_TASK

MAZE = 'visual-pointmaze-quickstart-navigate-v0'


@pytest.fixture
def maze(maze_npz) -> dict[str, np.ndarray]:
    with np.load(maze_npz) as file:
        return dict(file)


def array_entries(data_dir: Path, name: str) -> dict:
    manifest = json.loads((data_dir / name / 'manifest.json').read_text())
    return {split: entry['arrays'] for split, entry in manifest['splits'].items()}


def test_through_tfds_and_back(assert_one_line, fql, maze_npz, tmp_path):
    data = ('--data-dir', tmp_path)
    assert fql('prepare', MAZE, '--source', maze_npz, *data).returncode == 0
    done = fql('export-tfds', MAZE, '--out', tmp_path / 'tfds', *data)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'tfds' / 'ogbench' / MAZE / '1.0.0'
    assert str(folder) in done.stdout
    done = fql('prepare', 'again', '--tfds', folder, *data)
    assert done.returncode == 0, done.stderr
    assert array_entries(tmp_path, 'again') == array_entries(tmp_path, MAZE)
    assert_one_line(fql('export-tfds', MAZE, '--out', tmp_path / 'tfds', *data), 'exists')


def test_an_export_leaves_out_what_not_every_split_has(fql, maze_npz, maze, tmp_path):
    source = tmp_path / f'{MAZE}.npz'
    source.write_bytes(maze_npz.read_bytes())
    np.savez(source.with_stem(f'{MAZE}-val'), **{k: v for k, v in maze.items() if k != 'qvel'})
    data = ('--data-dir', tmp_path)
    assert fql('prepare', MAZE, '--source', source, *data).returncode == 0
    done = fql('export-tfds', MAZE, '--out', tmp_path / 'tfds', *data)
    assert done.returncode == 0, done.stderr
    assert 'left out, as not every split has it: qvel' in done.stdout
    folder = tmp_path / 'tfds' / 'ogbench' / MAZE / '1.0.0'
    assert fql('prepare', 'again', '--tfds', folder, *data).returncode == 0
    assert not {'qvel'} & set(array_entries(tmp_path, 'again')['train'])


def test_download(fql, maze_npz, tmp_path, monkeypatch):
    site = tmp_path / 'site'
    site.mkdir()
    for name in (f'{MAZE}.npz', f'{MAZE}-val.npz'):
        (site / name).write_bytes(maze_npz.read_bytes())
    monkeypatch.setattr(SimpleHTTPRequestHandler, 'log_message', lambda *arguments: None)
    handler = functools.partial(SimpleHTTPRequestHandler, directory=site)
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        mirrors = ['http://127.0.0.1:9/{file}', f'http://127.0.0.1:{server.server_port}/{{file}}']
        monkeypatch.setattr('data_pipeline.sources.download.MIRRORS', mirrors)
        done = fql('prepare', MAZE, '--data-dir', tmp_path)
        server.shutdown()
    assert done.returncode == 0, done.stderr
    assert done.stdout.count('not verified') == 2
    assert array_entries(tmp_path, MAZE).keys() == {'train', 'val'}
    record = json.loads((tmp_path / 'downloads' / f'{MAZE}.npz.json').read_text())
    assert record['sha256'] == hashlib.sha256(maze_npz.read_bytes()).hexdigest()

    (tmp_path / 'downloads' / f'{MAZE}.npz').unlink()
    done = fql('prepare', MAZE, '--data-dir', tmp_path)  # No request goes to the mirrors.
    assert done.returncode == 0, done.stderr
    assert 'transitions' in done.stdout


@pytest.mark.parametrize('name', ['../escaped', 'a/b', '/tmp/x', '..', '.hidden', 'a\nb'])
def test_names_stay_within_the_data_folder(assert_one_line, fql, maze_npz, tmp_path, name):
    data, out = tmp_path / 'data', tmp_path / 'out'
    data.mkdir()
    for command in (
        ('prepare', name, '--source', maze_npz),
        ('export-tfds', name, '--out', out),
        ('inspect', 'data', name),
        ('train', '--task', 'own', '--dataset', name, '--run-dir', tmp_path / 'run'),
    ):
        fault = 'is not a valid name' if name.isprintable() else 'has a line break'
        assert_one_line(fql(*command, '--data-dir', data), fault)
    assert list(tmp_path.iterdir()) == [data]
    assert list(data.iterdir()) == []


@pytest.mark.parametrize(
    'name', [collected_file('', 'x').parent.name, 'downloads', compilation_cache_dir().name]
)
def test_names_of_folders_with_another_use_are_refused(
    assert_one_line, fql, maze_npz, tmp_path, name
):
    data = ('--data-dir', tmp_path / 'data')
    done = fql('prepare', name, '--source', maze_npz, *data)
    assert_one_line(done, f'{name!r} cannot be the name of a dataset')
    assert not (tmp_path / 'data').exists()


def test_the_name_in_a_manifest_is_no_way_out(assert_one_line, fql, maze_npz, tmp_path):
    data = ('--data-dir', tmp_path / 'data')
    assert fql('prepare', 'd', '--source', maze_npz, *data).returncode == 0
    path = tmp_path / 'data' / 'd' / 'manifest.json'
    path.write_text(json.dumps(json.loads(path.read_text()) | {'dataset': '../../../escaped'}))
    done = fql('export-tfds', 'd', '--out', tmp_path / 'a' / 'b', *data)
    assert_one_line(done, 'is not a valid name')
    assert not (tmp_path / 'a').exists()


def test_the_printed_commands_read_an_export(fql, maze_npz, tmp_path):
    data = ('--data-dir', tmp_path / 'data')
    for name, commands in (('d-1', 2), ("it's a:b", 1)):  # TFDS would take the latter apart.
        assert fql('prepare', name, '--source', maze_npz, *data).returncode == 0
        done = fql('export-tfds', name, '--out', tmp_path / 'o"ut', *data)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line.startswith('  tfds.')]
        assert len(lines) == commands
        for line in lines:
            assert len(eval(line.strip(), {'tfds': tfds})) == 10  # episodes


def test_folders_whose_names_are_no_text(assert_one_line, fql, maze_npz, tmp_path):
    """Neither TFDS nor Orbax can write there."""
    odd, data = tmp_path / 'r\udcff', ('--data-dir', tmp_path / 'data')
    assert fql('prepare', MAZE, '--source', maze_npz, *data).returncode == 0
    done = fql('export-tfds', MAZE, '--out', odd, *data)
    assert_one_line(done, 'TFDS cannot write into a folder whose name is no UTF-8')
    done = fql('train', '--task', QUICKSTART_TASK, '--run-dir', odd, *data)
    assert_one_line(done, 'a folder with what is no UTF-8 in its name')
    assert not odd.exists()


def test_no_mirror(assert_one_line, fql, tmp_path, monkeypatch):
    monkeypatch.setattr('data_pipeline.sources.download.MIRRORS', ['http://127.0.0.1:9/{file}'])
    done = fql('prepare', MAZE, '--data-dir', tmp_path)
    assert_one_line(done, f'http://127.0.0.1:9/{MAZE}', '--source')


def test_collected_data_are_not_replaced_by_a_download(
    assert_one_line, fql, maze_npz, tmp_path, monkeypatch
):
    monkeypatch.setattr('data_pipeline.sources.download.MIRRORS', ['http://127.0.0.1:9/{file}'])
    name, data = 'visual-cube-single-play-v0', ('--data-dir', tmp_path)
    collected = tmp_path / 'collected' / f'{name}.npz'
    collected.parent.mkdir()
    collected.write_bytes(maze_npz.read_bytes())
    done = fql('prepare', name, *data)
    assert_one_line(done, f'was collected under this name; add --source {collected},')
    hint = f'fql prepare {name} --source {collected} --data-dir {tmp_path}'
    task = 'visual-cube-single-play-singletask-task1-v0'
    assert_one_line(fql('train', '--task', task, *data), f'make it with {hint},')
    assert fql('prepare', name, '--source', collected, *data).returncode == 0
    assert fql('prepare', name, *data).returncode == 0, 'what is prepared needs no source'


def test_two_sources(assert_one_line, fql, tmp_path):
    assert_one_line(fql('prepare', 'd', '--source', 'd.npz', '--tfds', 'd'), '--source and --tfds')


@pytest.mark.parametrize(
    ('key', 'source'),
    [
        *itertools.product(('--observation-key', '--action-key', '--reward-key'), [()]),
        *itertools.product(('--action-key', '--reward-key'), [('--source', 'd.npz')]),
    ],
)
def test_keys_of_no_rlds_dataset(assert_one_line, fql, key, source):
    assert_one_line(fql('prepare', 'd', *source, key, 'x'), key, '--tfds')


def test_unknown_tfds_dataset(assert_one_line, fql, tmp_path):
    done = fql('prepare', 'd', '--tfds', 'no_such_dataset', '--data-dir', tmp_path)
    assert_one_line(done, 'no_such_dataset', 'not found')


def without_terminals(arrays):
    del arrays['terminals']


def float_images(arrays):
    arrays['observations'] = arrays['observations'] / np.float32(255)


def ragged(arrays):
    rows = np.empty(len(arrays['actions']), object)
    rows[:] = [np.zeros(i % 3) for i in range(len(rows))]
    arrays['actions'] = rows


def unequal(arrays):
    arrays['qpos'] = arrays['qpos'][:-7]


def black(arrays):
    arrays['observations'][30:60] = 0


def large_action(arrays):
    arrays['actions'][77, 1] = 2


BAD_ARRAYS = {
    without_terminals: 'has no terminals',
    float_images: 'observations is float32',
    ragged: 'actions holds Python objects',
    unequal: 'arrays differ in length',
    black: 'all images of trajectory 1 (rows 30 to 59)',
    large_action: 'actions reach 2 in row 77',
}


@pytest.mark.parametrize('spoil', BAD_ARRAYS)
def test_bad_arrays_leave_the_old_store(assert_one_line, fql, maze_npz, maze, tmp_path, spoil):
    data = ('--data-dir', tmp_path / 'data')
    assert fql('prepare', MAZE, '--source', maze_npz, *data).returncode == 0
    before = (tmp_path / 'data' / MAZE / 'manifest.json').read_bytes()
    spoil(maze)
    np.savez(tmp_path / 'bad.npz', allow_pickle=True, **maze)
    done = fql('prepare', MAZE, '--source', tmp_path / 'bad.npz', '--overwrite', *data)
    assert_one_line(done, 'bad.npz', BAD_ARRAYS[spoil])
    assert (tmp_path / 'data' / MAZE / 'manifest.json').read_bytes() == before
    assert {path.name for path in (tmp_path / 'data').iterdir()} == {MAZE, f'.{MAZE}.lock'}
    assert fql('inspect', 'data', MAZE, '--verify', *data).returncode == 0


def test_store_of_a_newer_version(assert_one_line, fql, maze_npz, tmp_path):
    data = ('--data-dir', tmp_path)
    assert fql('prepare', 'd', '--source', maze_npz, *data).returncode == 0
    path = tmp_path / 'd' / 'manifest.json'
    newer = json.loads(path.read_text()) | {'format_version': FORMAT_VERSION + 1}
    path.write_text(json.dumps(newer))
    for command in (
        ('inspect', 'data', 'd'),
        ('prepare', 'd', '--source', maze_npz),
        ('export-tfds', 'd', '--out', tmp_path / 'tfds'),
    ):
        assert_one_line(fql(*command, *data), 'is newer than this code')
    assert json.loads(path.read_text()) == newer
