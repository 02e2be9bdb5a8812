"""`fql collect`: OGBench's scripted oracles fill an .npz file, and one for validation."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data_pipeline.collection.collect import collect
from data_pipeline.collection.recipes import Recipe, dataset_name, ogbench_recipe
from data_pipeline.data_dir import collected_file, data_dir_arguments
from data_pipeline.errors import DataError
from data_pipeline.machine import available_processors
from fql.command import command
from fql.output import print_notice
from fql.runs.progress import progress_bar, progress_callback
from scripts.collect_args import Collect


def run(args: Collect) -> None:
    """Collect what is missing, and say what to do with it."""
    recipe, episodes = recipe_of(args)
    name = dataset_name(recipe)
    out = args.out or collected_file(args.data_dir, name)
    jobs = [(recipe, out, episodes if args.episodes is None else args.episodes)]
    if args.val_episodes:
        val = out.with_name(f'{out.stem}-val.npz')
        jobs.append((dataclasses.replace(recipe, split='val'), val, args.val_episodes))
    if not args.overwrite:
        kept = [path for _, path, _ in jobs if path.exists()]
        if len(kept) == len(jobs):
            raise DataError(f'{" and ".join(map(str, kept))} exists; replace it with --overwrite')
        jobs = [job for job in jobs if job[1] not in kept]
        for path in kept:
            print(f'kept: {path}')
    for recipe, path, number in jobs:
        _collect_with_progress(recipe, path, number, args)
    place = data_dir_arguments(args.data_dir)
    print(f'next: {command("prepare", name, "--source", out, *place)}')


def recipe_of(args: Collect) -> tuple[Recipe, int]:
    """OGBench's recipe and number of episodes, the recipe changed by what the user gave.

    Raises:
        DataError: no such environment or data, or a setting is unusable.
    """
    recipe, episodes = ogbench_recipe(args.env, args.dataset_type)
    given = {
        name: getattr(args, name)
        for name in ('episode_steps', 'noise', 'p_random_action')
        if getattr(args, name) is not None
    }
    recipe = dataclasses.replace(recipe, seed=args.seed, env_kwargs=_env_kwargs(args), **given)
    recipe.check()
    if args.frame_size is not None and not recipe.is_visual:
        raise DataError(f'frame_size is for images; {args.env} has none, visual-{args.env} does')
    return recipe, episodes


def _env_kwargs(args: Collect) -> dict[str, Any]:
    try:
        kwargs = json.loads(args.env_kwargs)
    except (ValueError, RecursionError) as error:
        raise DataError(f'env_kwargs is not JSON: {error}: {args.env_kwargs[:200]}') from error
    if not isinstance(kwargs, dict):
        raise DataError(f'env_kwargs must be a JSON object {{"name": value}}: {args.env_kwargs}')
    if args.frame_size is None:
        return kwargs
    return {**kwargs, 'width': args.frame_size, 'height': args.frame_size}


def _collect_with_progress(recipe: Recipe, out: Path, episodes: int, args: Collect) -> None:
    rows = episodes * (recipe.episode_steps + 1)
    try:
        with progress_bar(f'collect {out.stem}', 'frame') as bar:
            collect(
                recipe,
                out,
                episodes=episodes,
                workers=args.workers or available_processors(),
                overwrite=args.overwrite,
                env_step_seconds=args.env_step_seconds,
                progress=progress_callback(bar),
                notify=tqdm.write,
            )
    except KeyboardInterrupt:
        print_notice('\nfinished episodes are kept; run the same command to continue from them')
        raise
    print(f'{out}: {rows:,} rows in {episodes:,} trajectories')
