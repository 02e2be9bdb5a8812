"""Scripted data collection in several processes, into files in OGBench's format."""

import dataclasses
import json
import os
import shutil
import time
import traceback
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from multiprocessing.connection import Connection, wait
from pathlib import Path

import numpy as np

from data_pipeline.collection.oracles import make_environment, run_episode
from data_pipeline.collection.recipes import Recipe
from data_pipeline.errors import DataError
from data_pipeline.files import (
    load_arrays,
    locked,
    make_folder,
    replacing,
    write_npy_header,
    write_text,
)
from data_pipeline.progress import Progress, running_sum
from data_pipeline.workers import WorkerGroup

STEP_SECONDS = 300.0
_START_SECONDS = 300.0
_REPORT_SECONDS = 1.0
_POLL_SECONDS = 0.5


def collect(
    recipe: Recipe,
    out: Path | str,
    *,
    episodes: int,
    workers: int,
    overwrite: bool = False,
    env_step_seconds: float = STEP_SECONDS,
    progress: Progress | None = None,
    notify: Callable[[str], None] = lambda notice: None,
) -> Path:
    """Collect episodes into one compressed `.npz` in OGBench's format.

    For the arrays see `run_episode`. The file holds those of all episodes, in order, n = episodes *
    (episode_steps + 1) rows.

    Episode i depends on the recipe and i only. Episodes are kept in `<out>.parts/` until `out` is
    complete. A call after an interruption continues with them; `episodes` may then be another
    number.

    Args:
        recipe: what to collect.
        out: the file to write; must end in .npz.
        episodes: number of episodes.
        workers: number of processes.
        overwrite: whether to replace an existing `out`, once all is collected.
        env_step_seconds: time limit for a step of an environment. A worker that takes longer is
            replaced and its episode repeated, once.
        progress: called with (rows done, rows) at the start and about once a second.
        notify: called with a line about each episode that is repeated.

    Raises:
        DataError: an argument is unusable, `out` exists, `<out>.parts/` is of another recipe or in
            use by another process, the environment cannot be made or rendered, a file cannot be
            written, an episode's file is damaged, a worker died, or hung twice in an episode.
    """
    out = Path(out)
    recipe.check()
    parts = out.with_name(out.name + '.parts')
    _check_arguments(out, parts, episodes, workers, overwrite)
    with ExitStack() as stack:
        with _writing(out):
            make_folder(parts)
            # Removed with the folder, when there is nothing left to protect.
            stack.enter_context(locked(parts / 'collect.lock', f'collects into {out}'))
            _open_parts(parts, recipe)
        # A power failure may have cut a file short; it is replaced.
        missing = [i for i in range(episodes) if not zipfile.is_zipfile(_part(parts, i))]
        rows = recipe.episode_steps + 1
        advance = running_sum(progress, episodes * rows)
        advance((episodes - len(missing)) * rows)
        for more in _run_workers(recipe, parts, missing, workers, env_step_seconds, notify):
            advance(more)
        with _writing(out):
            _merge([_part(parts, episode) for episode in range(episodes)], out)
            shutil.rmtree(parts)
    return out


def _check_arguments(out: Path, parts: Path, episodes: int, workers: int, overwrite: bool) -> None:
    for name, value in (('episodes', episodes), ('workers', workers)):
        if value < 1:
            raise DataError(f'{name} must be at least 1, not {value}')
    if out.suffix != '.npz':
        raise DataError(f'the file to collect into must end in .npz: {out}')
    if parts.is_symlink():  # A file could not be renamed from another disk, nor a link removed so.
        raise DataError(f'{parts} is a link; collect into a folder of that disk instead')
    if os.path.lexists(out) and not overwrite:
        raise DataError(f'{out} exists; delete it, then run the command again')


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an OSError, such as that of a full disk, into a DataError."""
    try:
        yield
    except OSError as error:
        raise DataError(f'{path}: cannot be written: {error.strerror or error}') from error


def _open_parts(parts: Path, recipe: Recipe) -> None:
    """Write the recipe into a folder without finished episodes, or check that of others."""
    recipe_file = parts / 'recipe.json'
    wanted = json.dumps(dataclasses.asdict(recipe), sort_keys=True)
    # Of an environment that cannot be made, as under a misspelt name, only a recipe is left.
    if not recipe_file.exists() or not any(parts.glob('episode-*.npz')):
        write_text(recipe_file, wanted)
    elif (found := ' '.join(recipe_file.read_text(errors='replace').split())) != wanted:
        raise DataError(
            f'{parts} holds episodes of another collection, {found}; '
            'finish that collection, or delete the folder'
        )


def _part(parts: Path, episode: int) -> Path:
    return parts / f'episode-{episode:06d}.npz'


def _run_workers(
    recipe: Recipe,
    parts: Path,
    episodes: Sequence[int],
    workers: int,
    step_seconds: float,
    notify: Callable[[str], None],
) -> Iterable[int]:
    """Collect the episodes in spawned processes; yield numbers of new rows.

    The number is negative where rows are discarded, because their episode is repeated.
    """
    shares = [list(episodes[index::workers]) for index in range(min(workers, len(episodes)))]
    rows = [0] * len(shares)  # As reported by the worker.
    patience = [_START_SECONDS] * len(shares)  # Seconds left until the worker's next message.
    repeated: set[int] = set()
    with WorkerGroup() as group:
        for share in shares:
            group.start(_run_worker, recipe, parts, share)
        running = set(range(len(shares)))
        while running:
            began = time.monotonic()
            ready = wait([group.connections[index] for index in running], _POLL_SECONDS)
            # Excludes time for which this process was stopped together with its workers.
            passed = min(time.monotonic() - began, _POLL_SECONDS)
            for index in sorted(running):
                if group.connections[index] in ready:
                    message = _receive(group, index, recipe)
                    patience[index] = step_seconds + _REPORT_SECONDS
                    if message is None:
                        running.remove(index)
                        group.exit_code(index)
                    else:
                        rows[index] += message
                        yield message
                    continue
                patience[index] -= passed
                if patience[index] > 0:
                    continue
                missing = [i for i in shares[index] if not zipfile.is_zipfile(_part(parts, i))]
                slow = f'{recipe.env_id} took longer than {step_seconds:g} s for a step'
                if repeated & set(missing[:1]):
                    raise DataError(
                        f'{slow} of episode {missing[0]}, for the second time; '
                        '--env-step-seconds sets the limit'
                    )
                notify(f'{slow}: worker {index} is replaced and its episode repeated')
                repeated |= set(missing[:1])
                finished = (len(shares[index]) - len(missing)) * (recipe.episode_steps + 1)
                yield finished - rows[index]
                shares[index], rows[index], patience[index] = missing, 0, _START_SECONDS
                group.replace(index, _run_worker, recipe, parts, missing)


def _receive(group: WorkerGroup, index: int, recipe: Recipe) -> int | None:
    """A worker's message: a number of rows, or None at its end."""
    try:
        message = group.connections[index].recv()
    except (EOFError, OSError):
        code = group.exit_code(index)
        raise DataError(
            f'a worker collecting from {recipe.env_id} died (exit code {code}); '
            'run the command again to continue from the finished episodes'
        ) from None
    if isinstance(message, str):
        raise DataError(message)
    return message


def _run_worker(
    connection: Connection, recipe: Recipe, parts: Path, episodes: Sequence[int]
) -> None:
    """Write the episodes' parts. Send numbers of rows, then None; or an error message (str)."""
    try:
        rows = _RowCounter(connection)
        with closing(make_environment(recipe)) as env:
            rows.send()  # From now on, the time limit of a step holds.
            for episode in episodes:
                arrays = run_episode(env, recipe, _episode_rng(recipe, episode), rows.add)
                with _writing(parts), replacing(_part(parts, episode)) as temporary:
                    _write_part(temporary, arrays)
                rows.send()
        connection.send(None)
    except DataError as error:
        connection.send(str(error))
    except Exception:
        connection.send(f'collection from {recipe.env_id} failed\n{traceback.format_exc()}')


class _RowCounter:
    """Reports the number of new rows to the parent, about once a second."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._rows, self._sent = 0, time.monotonic()

    def add(self, rows: int) -> None:
        self._rows += rows
        if time.monotonic() - self._sent >= _REPORT_SECONDS:
            self.send()

    def send(self) -> None:
        self._connection.send(self._rows)
        self._rows, self._sent = 0, time.monotonic()


def _episode_rng(recipe: Recipe, episode: int) -> np.random.Generator:
    stream = () if recipe.split == 'train' else (1,)
    return np.random.default_rng((recipe.seed, episode, *stream))


def _write_part(path: Path, arrays: dict[str, np.ndarray]) -> None:
    with path.open('wb') as file:
        np.savez(file, allow_pickle=False, **arrays)


def _merge(parts: Sequence[Path], out: Path) -> None:
    """Write the parts' rows, in order, as one compressed .npz; one part is in memory at a time.

    The file's bytes depend on the arrays alone, as it contains no timestamps.
    """
    with replacing(out, parts[0].parent) as merged, zipfile.ZipFile(merged, 'w') as archive:
        for name, (shape, dtype) in _shapes(parts).items():
            member = zipfile.ZipInfo(f'{name}.npy')
            member.compress_type = zipfile.ZIP_DEFLATED
            with archive.open(member, 'w', force_zip64=True) as file:
                write_npy_header(file, shape, dtype)
                for part in parts:
                    array = _read_part(part, name)[name]
                    if (len(array) * len(parts), *array.shape[1:]) != shape or array.dtype != dtype:
                        raise DataError(
                            f'{part}: {name} is {array.dtype} {array.shape}, unlike the first '
                            "episode's; delete that file, then run the command again"
                        )
                    file.write(np.ascontiguousarray(array).data)


def _shapes(parts: Sequence[Path]) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """The merged arrays' shapes and dtypes; all parts have as many rows as the first."""
    return {
        name: ((len(parts) * len(array), *array.shape[1:]), array.dtype)
        for name, array in _read_part(parts[0]).items()
    }


def _read_part(part: Path, *names: str) -> dict[str, np.ndarray]:
    """Arrays of an episode's file, by default all.

    A damaged file is removed, so that the next call collects it again.
    """
    try:
        return load_arrays(part, names)
    except ValueError as error:
        part.unlink()
        raise DataError(
            f'{part} was damaged ({error}); run the command again to collect it'
        ) from error
