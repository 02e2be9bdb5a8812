"""The examples of the docs run unchanged, with few updates."""

import json
import re
import runpy
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

EXAMPLES = Path(__file__).parents[2] / 'docs' / 'examples'


@pytest.fixture
def run_example(monkeypatch):
    """run_example('x.py', 'argument', ...): as `python x.py argument ...`, in this process."""

    def run(name, *arguments):
        monkeypatch.setattr(sys, 'argv', [name, *map(str, arguments)])
        return runpy.run_path(str(EXAMPLES / name), run_name='__main__')

    return run


@pytest.fixture
def own_dataset(run_example, monkeypatch, tmp_path, capsys):
    """A folder in which `own_dataset.py` was run."""
    monkeypatch.chdir(tmp_path)
    # Python adds a script's folder by itself; this is for the workers.
    monkeypatch.syspath_prepend(EXAMPLES)
    monkeypatch.delitem(sys.modules, 'own_dataset', raising=False)
    with pytest.raises(SystemExit) as ended:
        run_example('own_dataset.py', 3)
    assert ended.value.code == 0
    assert re.search(r'success: 1: [\d.]+%, 2: [\d.]+%, 3: [\d.]+%', capsys.readouterr().out)
    return tmp_path


@pytest.mark.long
def test_data_of_ones_own_a_policy_in_a_program_and_on_a_server(run_example, own_dataset, capsys):
    run_example('act_in_my_environment.py', own_dataset / 'runs/dots', 'own_dataset:Dot-v0')
    assert re.match(r'success in \d+ of 10 episodes\n', capsys.readouterr().out)
    run_example('time_policy.py', own_dataset / 'runs/dots')
    assert re.search(r'then [\d.]+ ms an action\n', capsys.readouterr().out)

    client = pytest.importorskip('websockets.sync.client', reason='needs websockets')
    import fql

    run = own_dataset / 'runs/dots'
    serve_policy = runpy.run_path(str(EXAMPLES / 'serve_policy.py'))
    policy = fql.load_policy(run)
    images = np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8)
    with serve_policy['make_server'](run, 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        with client.connect(f'ws://localhost:{port}') as connection:
            for image in images:
                connection.send(image.tobytes())
                action = np.frombuffer(connection.recv(), np.float32)
                np.testing.assert_array_equal(action, policy(image))
        server.shutdown()
        thread.join()


@pytest.mark.long
@pytest.mark.usefixtures('prepared')
def test_a_loop_in_python(run_example, monkeypatch, environment, capsys):
    monkeypatch.setenv('FQL_DATA_DIR', environment['FQL_DATA_DIR'])
    run_example('train_in_python.py', 2)
    line, *actions = capsys.readouterr().out.splitlines()
    assert re.match(r'2 loss [\d.]+ critic/q_mean -?[\d.]+', line)
    assert len(actions) == 4
    # As its docstring promises: a loop on one screen.
    text = (EXAMPLES / 'train_in_python.py').read_text()
    assert len(text.splitlines()) < 50


@pytest.mark.long
@pytest.mark.timeout(600)  # Three runs, with the quickstart's networks.
@pytest.mark.usefixtures('prepared', 'opengl')
def test_the_notebook(monkeypatch, environment, tmp_path, capsys):
    monkeypatch.setenv('FQL_DATA_DIR', environment['FQL_DATA_DIR'])
    monkeypatch.chdir(tmp_path)
    notebook = json.loads((EXAMPLES / 'pretrain_then_freeze.ipynb').read_text())
    cells = [''.join(cell['source']) for cell in notebook['cells'] if cell['cell_type'] == 'code']
    assert cells[0].startswith('PRETRAINING = ')
    names = {}
    for cell in ['PRETRAINING, UPDATES, EPISODES, SEEDS = 2, 1, 1, (0,)', *cells[1:]]:
        exec(compile(cell, 'notebook', 'exec'), names)
    table = capsys.readouterr().out
    assert 'fql (shift-probability 0, encoder.mode frozen' in table
    assert (tmp_path / 'report.html').exists()
