"""`fql prepare`: a frame store from a file, from an RLDS dataset or from OGBench's mirrors."""

from collections.abc import Mapping

from data_pipeline.data_dir import resolve_data_dir
from data_pipeline.sources.base import SourceSplit
from data_pipeline.sources.download import download_dataset
from data_pipeline.sources.ogbench import npz_splits
from data_pipeline.store.frame_store import FrameStore, open_store
from data_pipeline.store.writer import write_store
from fql.errors import FQLError
from fql.training.progress import progress_bar, progress_callback
from scripts.arguments import Prepare


def run(args: Prepare) -> None:
    """Prepares the dataset and says what it holds and where it lies."""
    if args.source is not None and args.tfds is not None:
        raise FQLError('--source and --tfds exclude each other')
    for name in ('observation_key', 'action_key', 'reward_key'):
        if args.tfds is None and getattr(args, name) != getattr(Prepare, name):
            raise FQLError(f'--{name.replace("_", "-")} is for RLDS datasets; name one with --tfds')
    path = resolve_data_dir(args.data_dir) / args.dataset
    if args.source is None and args.tfds is None and path.exists() and not args.overwrite:
        print(describe(open_store(path)))  # Nothing to download for.
        return
    splits = find_source(args)
    with progress_bar('prepare', 'B') as bar:
        store = write_store(
            path,
            args.dataset,
            splits,
            overwrite=args.overwrite,
            progress=progress_callback(bar),
        )
    print(describe(store))


def find_source(args: Prepare) -> Mapping[str, SourceSplit]:
    """The source that was named; without one, the file of the dataset's name is downloaded."""
    if args.tfds is not None:
        from data_pipeline.sources.rlds import RldsKeys, rlds_splits

        keys = RldsKeys(args.observation_key, args.action_key, args.reward_key)
        return rlds_splits(args.tfds, keys)
    if args.source is not None:
        return npz_splits(args.source)
    with progress_bar('download', 'B') as bar:
        folder = resolve_data_dir(args.data_dir) / 'downloads'
        return npz_splits(download_dataset(args.dataset, folder, progress=progress_callback(bar)))


def describe(store: FrameStore) -> str:
    """Some lines on a store: where it lies and what it holds."""
    lines = [f'{store.manifest["dataset"]}: {store.path}']
    for name, split in store.splits.items():
        size = 'x'.join(str(n) for n in split.observations.shape[1:])
        lines.append(
            f'  {name}: {split.num_transitions:,} transitions in {split.terminals.sum():,} '
            f'trajectories, observations {size} {split.observations.dtype}, '
            f'actions {split.actions.shape[1]}'
        )
    return '\n'.join(lines)
