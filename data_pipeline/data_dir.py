"""Where prepared datasets lie."""

import os
from pathlib import Path


def resolve_data_dir(flag: str) -> Path:
    """The folder a user chose by `--data-dir`, by `$FQL_DATA_DIR`, or a cache folder of theirs."""
    chosen = flag or os.environ.get('FQL_DATA_DIR')
    if not chosen:
        import platformdirs  # Here, so that benchmarks run where it is not installed.

        chosen = platformdirs.user_cache_dir('fql')
    return Path(chosen).expanduser().absolute()
