"""`fql inspect data`: what a frame store holds, in words and in pictures."""

from data_pipeline.replay_store import is_replay, open_data, verify_replay
from data_pipeline.store.frame_store import FrameStore
from data_pipeline.store.labels import stored_labels
from data_pipeline.store.latents import stored_latents
from data_pipeline.store.verification import verify
from fql.reports.data_plots import plot_frames, plot_histograms
from fql.reports.data_report import describe_data
from fql.runs.progress import progress_bar, progress_callback
from scripts.inspect_args import InspectData


def run(args: InspectData) -> None:
    """Print the report and write what was asked for."""
    store = open_data(args.data_dir, args.dataset)
    if args.verify:  # First: missing labels would be computed from these arrays.
        if is_replay(store.path):
            verify_replay(store.path)
        else:
            verify_all(store)
        print('checksums: every array is as it was written')
    for line in describe_data(store):
        print(line, flush=True)
    if args.png is not None and args.histograms is not None:
        args.png.parent.mkdir(parents=True, exist_ok=True)
        split = next(iter(store.splits.values()))  # A replay may have only `train_1`.
        plot_frames(args.png, split, args.dataset)
        plot_histograms(args.histograms, split, args.dataset)
        for path in (args.png, args.histograms):
            print(f'wrote {path}')


def verify_all(store: FrameStore) -> None:
    """Raise DamagedError if an array, label or cached latents are not what was written."""
    arrays = [*store.stored_arrays, *stored_labels(store)]
    for folder in sorted((store.path / 'latents').glob('*')):
        arrays += stored_latents(folder)
    with progress_bar('verify', 'B') as bar:
        verify(store.path, arrays, progress_callback(bar))
