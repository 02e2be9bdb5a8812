"""`fql prepare`: a frame store from a file, from an RLDS dataset or from OGBench's mirrors."""

import shlex
from collections.abc import Mapping

from data_pipeline.data_dir import collected_file, dataset_folder, downloads_folder
from data_pipeline.observations import observation_keys, unnamed
from data_pipeline.replay_store import is_replay
from data_pipeline.source_split import SourceSplit
from data_pipeline.sources.download import download_dataset
from data_pipeline.sources.file_formats import file_splits
from data_pipeline.sources.minari import download_minari, minari_splits
from data_pipeline.sources.normalization import normalize_actions
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.sources.replay import replay_splits
from data_pipeline.store.frame_store import open_store
from data_pipeline.store.writer import write_store
from fql.envs.tasks import ADROIT_TASKS, ANTMAZE_TASKS
from fql.errors import FQLError
from fql.reports.data_report import describe_store
from fql.runs.progress import progress_bar, progress_callback
from scripts.prepare_args import Prepare


def run(args: Prepare) -> None:
    """Prepare the dataset; say what it holds and where it is."""
    path = dataset_folder(args.data_dir, args.name)
    if not args.sources and path.exists() and not args.overwrite:
        print(describe_store(open_store(path)))  # Needs no download.
        return
    splits = find_source(args)
    if args.normalize_actions:
        splits = normalize_actions(splits)
    with progress_bar('prepare', 'B') as bar:
        store = write_store(
            path,
            args.name,
            splits,
            overwrite=args.overwrite,
            progress=progress_callback(bar),
        )
    print(describe_store(store))


def find_source(args: Prepare) -> Mapping[str, SourceSplit]:
    """The source that was named; without one, the file of the dataset's name is downloaded.

    Raises:
        FQLError: no file is named, and the data are D4RL's, or a file of that name was collected
            here; or keys are of a replay.
    """
    keys = observation_keys(args.observation_key)
    if args.tfds is not None:
        from data_pipeline.sources.rlds import RldsKeys, rlds_splits

        observations = unnamed(keys) if keys else 'observation'
        return rlds_splits(args.tfds, RldsKeys(observations, args.action_key, args.reward_key))
    if args.minari is not None:
        return minari_splits(download_minari(args.minari), keys)
    if args.source is not None:
        if is_replay(args.source):
            if keys:
                raise FQLError(
                    f'{args.source}: a replay is read whole; leave out --observation-key'
                )
            return replay_splits(args.source)
        return file_splits(args.source, args.name, keys)
    if args.dataset in (*ANTMAZE_TASKS, *ADROIT_TASKS):
        raise FQLError(
            f"{args.dataset}: D4RL's data are not downloaded; name its .hdf5 file with --source"
        )
    collected = collected_file(args.data_dir, args.dataset)
    if collected.exists():
        source = shlex.quote(str(collected))
        raise FQLError(
            f'{collected} was collected under this name; add --source {source}, or move it away to '
            "download OGBench's file"
        )
    folder = downloads_folder(args.data_dir)
    notes: list[str] = []
    with progress_bar('download', 'B') as bar:
        path = download_dataset(
            args.dataset, folder, progress=progress_callback(bar), note=notes.append
        )
    for line in notes:
        print(line)
    return npz_splits(path)
