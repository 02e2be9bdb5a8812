"""Metrics of a run at Weights & Biases, which is not installed unless asked for."""

import importlib.util
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_pipeline.errors import first_line
from data_pipeline.files import write_text
from fql.errors import FQLError
from fql.runs.metrics_log import Mirror
from fql.runs.run_folder import RunFolder
from fql.settings.train_config import TrainConfig, config_to_dict


def check_wandb(config: TrainConfig) -> None:
    """Raise FQLError if a run wants the package and it is not installed."""
    if config.wandb_project and importlib.util.find_spec('wandb') is None:
        raise FQLError("--wandb-project needs: pip install 'fql-pixels[wandb]'")


def wandb_mirror(config: TrainConfig, folder: RunFolder) -> Mirror:
    """Send rows of metrics to Weights & Biases, under the run folder's name.

    The run is known there by an id that the folder keeps, since folders of several experiments may
    have one name. Neither the machine's name nor paths are sent.

    Raises:
        FQLError: Weights & Biases accepts none; says why.
    """
    import wandb

    if not folder.wandb_id.exists():
        write_text(folder.wandb_id, secrets.token_hex(8))
    try:
        run = wandb.init(
            project=config.wandb_project,
            name=folder.path.name,
            id=folder.wandb_id.read_text(),
            dir=folder.path,
            config=shareable(config_to_dict(config)),
            resume='allow',
            settings=wandb.Settings(
                # No machine name, no folders, and none of the printed output, which names folders.
                host='fql',
                program='fql',
                console='off',
                disable_code=True,
                disable_git=True,
                x_disable_machine_info=True,
                x_disable_meta=True,
            ),
        )
    except wandb.Error as error:
        raise FQLError(f'Weights & Biases: {first_line(error)}') from error

    def mirror(step: int, metrics: Mapping[str, float]) -> None:
        run.log(metrics, step=step)

    return mirror


def shareable(config: dict[str, Any]) -> dict[str, Any]:
    """The settings without the places of files: only the last name of a path is left."""
    shown: dict[str, Any] = {}
    for name, value in config.items():
        if isinstance(value, dict):
            shown[name] = shareable(value)
        elif isinstance(value, str) and Path(value).is_absolute():
            shown[name] = Path(value).name
        else:
            shown[name] = value
    return shown
