"""`fql inspect data`: what a frame store holds, in words and in pictures."""

from data_pipeline.data_dir import dataset_folder
from data_pipeline.store.frame_store import open_store, verify_store
from fql.reports.data_plots import plot_frames, plot_histograms
from fql.reports.data_report import describe_data
from fql.training.progress import progress_bar, progress_callback
from scripts.inspect_args import InspectData


def run(args: InspectData) -> None:
    """Prints the report and writes what was asked for."""
    store = open_store(dataset_folder(args.data_dir, args.dataset))
    for line in describe_data(store):
        print(line, flush=True)
    if args.verify:
        with progress_bar('verify', 'B') as bar:
            verify_store(store, progress_callback(bar))
        print('checksums: every array is as it was written')
    if args.png is not None and args.histograms is not None:
        args.png.parent.mkdir(parents=True, exist_ok=True)
        plot_frames(args.png, store.splits['train'], args.dataset)
        plot_histograms(args.histograms, store.splits['train'], args.dataset)
        for path in (args.png, args.histograms):
            print(f'wrote {path}')
