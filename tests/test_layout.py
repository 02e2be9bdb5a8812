"""The repository's dependency rules, checked on the imports in the code."""

import ast
import subprocess
import sys
from collections.abc import Iterable
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


LIGHT = ('fql/envs', 'fql/settings', 'fql/agents/configs.py')
"""What `--help` and the processes that render import, at once."""
OF_ENCODERS = {'encoders', 'jax', 'flax', 'einops', 'numpy', *sys.stdlib_module_names}


def imported_names(path: Path) -> set[str]:
    """All that a file imports anywhere, by its full name: `a.b.c` of `from a.b import c`, too."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f'{path}: relative import'
            names |= {f'{node.module}.{alias.name}' for alias in node.names}
    return names


def imported_packages(path: Path) -> set[str]:
    return {name.split('.')[0] for name in imported_names(path)}


def assert_none_imports(files: list[Path], packages: Iterable[str], at_least: int) -> None:
    """No file imports one of the packages, such as `fql.runs`, or a module in it."""
    assert len(files) >= at_least
    prefixes = tuple(f'{package}.' for package in packages)
    for path in files:
        wrong = [name for name in imported_names(path) if f'{name}.'.startswith(prefixes)]
        assert not wrong, path


def room_of(path: Path) -> str:
    relative = path.relative_to(ROOT).as_posix()
    return max((room for room in ROOMS if relative.startswith(f'{room}/')), key=len)


@pytest.mark.parametrize('package', PACKAGES)
def test_dependencies_run_one_way(package):
    for path in (ROOT / package).rglob('*.py'):
        modules = imported_packages(path)
        assert modules & set(PACKAGES) <= ROOMS[room_of(path)], path
        if package != 'data_pipeline':
            assert not modules & TENSORFLOW, path
        assert 'pickle' not in modules, path


@pytest.mark.parametrize('package', ORDER)
def test_the_packages_around_the_algorithm_import_only_those_before_them(package):
    later = [f'fql.{name}' for name in ORDER[ORDER.index(package) + 1 :]]
    assert_none_imports(list((ROOT / 'fql' / package).glob('*.py')), later, at_least=4)


@pytest.mark.parametrize('room', LIGHT)
def test_light_modules_import_no_library_of_arrays_on_devices(room):
    """Not in a function either."""
    files = [ROOT / room] if room.endswith('.py') else list((ROOT / room).glob('*.py'))
    assert_none_imports(files, {'jax', 'flax', 'optax', *TENSORFLOW}, at_least=1)


def test_encoders_need_little_more_than_jax_and_flax():
    """Whoever takes them elsewhere installs no more; reading saved ones takes Orbax."""
    files = list((ROOT / 'encoders').rglob('*.py'))
    assert len(files) > 10
    for path in files:
        allowed = OF_ENCODERS | ({'orbax'} if path.name == 'saved.py' else set())
        assert imported_packages(path) <= allowed, path


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
    assert_none_imports(algorithm, [f'fql.{name}' for name in ORDER], at_least=16)


def test_the_store_knows_nothing_of_sources():
    files = list((ROOT / 'data_pipeline' / 'store').glob('*.py'))
    assert_none_imports(files, ['data_pipeline.sources'], at_least=6)


def test_updates_are_timed_where_little_more_than_jax_is_installed():
    code = (
        'import sys\n'
        'absent = "tensorflow tensorflow_datasets mujoco ogbench gymnasium orbax tqdm"\n'
        'absent += " platformdirs matplotlib imageio tensorboardX"\n'
        'sys.modules.update(dict.fromkeys(absent.split()))\n'
        'import scripts.main, scripts.benchmark.update\n'
    )
    subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)
