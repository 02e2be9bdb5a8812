"""The repository's dependency rules, checked on the imports in the code."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ('encoders', 'fql', 'data_pipeline', 'scripts')
ROOMS = {
    'encoders': {'encoders'},
    'data_pipeline': {'data_pipeline'},
    'fql/envs': {'fql', 'data_pipeline'},
    'fql/settings': {'fql', 'data_pipeline'},
    'fql/runs': {'fql', 'encoders', 'data_pipeline'},
    'fql/sweeps': {'fql', 'data_pipeline'},
    'fql/reports': {'fql', 'data_pipeline'},
    'fql/policies': {'fql', 'encoders', 'data_pipeline'},
    'fql/training': {'fql', 'encoders', 'data_pipeline'},
    'fql/pretraining': {'fql', 'encoders', 'data_pipeline'},
    'fql': {'fql', 'encoders'},
    'scripts': set(PACKAGES),
}
"""The allowed imports from this repository, by the innermost package named here."""
ORDER = ('envs', 'settings', 'runs', 'sweeps', 'reports', 'policies', 'training', 'pretraining')
"""Packages of fql around the algorithm; each imports only those before it."""
TENSORFLOW = {'tensorflow', 'tensorflow_datasets', 'tensorflow_probability', 'distrax', 'tfp'}


def imported_modules(path: Path) -> set[str]:
    modules = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            modules |= {alias.name.split('.')[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            modules.add(str(node.module).split('.')[0])
    return modules


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT).as_posix()
    return max((room for room in ROOMS if relative.startswith(f'{room}/')), key=len)


@pytest.mark.parametrize('package', PACKAGES)
def test_dependencies_run_one_way(package):
    for path in (ROOT / package).rglob('*.py'):
        modules = imported_modules(path)
        assert modules & set(PACKAGES) <= ROOMS[room_of(path)], path
        if package != 'data_pipeline':
            assert not modules & TENSORFLOW, path
        assert 'pickle' not in modules, path


@pytest.mark.parametrize('package', ORDER)
def test_the_packages_around_the_algorithm_import_only_those_before_them(package):
    later = ORDER[ORDER.index(package) + 1 :]
    files = list((ROOT / 'fql' / package).glob('*.py'))
    assert len(files) > 3
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                _, _, name = str(node.module).partition('fql.')
                assert name.split('.')[0] not in later, path


@pytest.mark.parametrize(
    'modules',
    [
        'fql.envs.make, fql.envs.workers, fql.envs.pointmaze, data_pipeline.collection.collect, '
        'data_pipeline.store.labels',
        'scripts.main',
        'fql.agents.configs, fql.settings.presets, fql.runs.run_spec',
    ],
)
def test_what_spawned_processes_import_stays_light(modules):
    """A process that renders must not import TensorFlow; JAX would only slow its start."""
    code = (
        f'import sys, {modules}\n'
        'heavy = {"tensorflow", "tensorflow_datasets", "jax", "flax", "orbax", "mujoco"}\n'
        'heavy = (heavy | {"ogbench", "matplotlib"}) & set(sys.modules)\n'
        'assert not heavy, heavy'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_the_algorithm_knows_nothing_of_runs():
    """Agents, learner and networks can be read and run without the packages around them."""
    algorithm = [*(ROOT / 'fql').glob('*.py'), *(ROOT / 'fql' / 'agents').glob('*.py')]
    algorithm.remove(ROOT / 'fql' / '__init__.py')  # Its imports are lazy.
    assert len(algorithm) > 15
    for path in algorithm:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not str(node.module).startswith(tuple(f'fql.{name}' for name in ORDER)), path


def test_the_store_knows_nothing_of_sources():
    files = list((ROOT / 'data_pipeline' / 'store').glob('*.py'))
    assert len(files) > 5
    for path in files:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom):
                assert not str(node.module).startswith('data_pipeline.sources'), path


def test_updates_are_timed_where_little_more_than_jax_is_installed():
    code = (
        'import sys\n'
        'absent = "tensorflow tensorflow_datasets mujoco ogbench gymnasium orbax tqdm"\n'
        'absent += " platformdirs matplotlib imageio tensorboardX"\n'
        'sys.modules.update(dict.fromkeys(absent.split()))\n'
        'import scripts.main, scripts.benchmark.update\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
