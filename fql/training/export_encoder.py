"""The encoder of a run's checkpoint, as a folder of its own."""

from pathlib import Path

from encoders.saved import SavedEncoder, save_encoder
from fql.agent import abstract_state
from fql.devices import one_device_mesh
from fql.envs.tasks import find_task
from fql.errors import FQLError
from fql.networks import Params, encoder_of
from fql.pretraining import abstract_pretrain_state
from fql.reports.tables import tell
from fql.training.checkpoints import CheckpointReader
from fql.training.pretrain import describe_encoder
from fql.training.pretrain_config import PretrainSpec, read_pretrain_spec
from fql.training.run_folder import RunFolder, RunSpec, read_spec


def export_encoder(path: Path, step: int | None, out: Path) -> SavedEncoder:
    """Writes the encoder of a run; returns what it is.

    Args:
        path: of the run, a training or a pretraining.
        step: which checkpoint; None: the newest that is sound.
        out: the folder to write.

    Raises:
        FQLError: no run, no sound checkpoint, or an agent without an encoder.
        EncoderError: the folder exists.
    """
    folder = RunFolder(path)
    if folder.pretrain_spec.exists():
        params, saved = read_pretrained(folder, read_pretrain_spec(folder), step)
    else:
        params, saved = read_trained(folder, read_spec(folder), step)
    save_encoder(out, params, saved)
    return saved


def read_pretrained(
    folder: RunFolder, spec: PretrainSpec, step: int | None
) -> tuple[Params, SavedEncoder]:
    """The encoder in a pretraining's checkpoint, and what it is."""
    reader = CheckpointReader(folder.checkpoints)
    step = reader.find(step, tell)
    params = reader.restore_params(abstract_pretrain_state(spec, one_device_mesh()), step)
    return params['encoder'], describe_encoder(spec, step, reader.metadata(step)['versions'])


def read_trained(folder: RunFolder, spec: RunSpec, step: int | None) -> tuple[Params, SavedEncoder]:
    """The encoder of an agent's critic, which with sharing is the only one, and what it is."""
    config = spec.config
    if not spec.images:
        raise FQLError(f'{folder.path}: its observations are vectors, so that it has no encoder')
    reader = CheckpointReader(folder.checkpoints)
    step = reader.find(step, tell)
    params = reader.restore_params(abstract_state(spec, one_device_mesh()), step)
    height, width, channels = spec.observation_shape
    saved = SavedEncoder(
        encoder=config.agent.encoder,
        image_shape=(height, width, channels // config.frame_stack),
        frame_stack=config.frame_stack,
        objective='fql',
        dataset=config.dataset or find_task(config.task).dataset,
        step=step,
        versions=reader.metadata(step)['versions'],
    )
    return params['encoders'][encoder_of(config.agent, 'critic')], saved
