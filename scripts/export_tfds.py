"""`fql export-tfds`: a frame store becomes an RLDS dataset in TFDS's format."""

import re

from data_pipeline.replay_store import is_replay, open_data, verify_replay
from fql.runs.progress import progress_bar, progress_callback
from fql.training.verified_data import verify_once
from scripts.export_tfds_args import ExportTfds


def run(args: ExportTfds) -> None:
    """Write the dataset and say how to read it."""
    store = open_data(args.data_dir, args.dataset)
    if is_replay(store.path):
        verify_replay(store.path)
    else:
        verify_once(store)
    from data_pipeline.tfds_builder import DATASET, common_info, export_tfds

    with progress_bar('export', 'frames') as bar:
        folder = export_tfds(store, args.out, progress_callback(bar))
    given = {name for split in store.splits.values() for name in split.info}
    if left_out := sorted(given - set(common_info(store))):
        print(f'left out, as not every split has it: {", ".join(left_out)}')
    name = f'{DATASET}/{store.manifest.dataset}'
    print(f'wrote {folder}; read it, without this program, with')
    if re.fullmatch(r'[\w.-]+', store.manifest.dataset):  # TFDS takes other names apart.
        print(f"  tfds.data_source('{name}', split='train', data_dir={str(args.out)!r})")
    print(f"  tfds.builder_from_directory({str(folder)!r}).as_data_source('train')")
