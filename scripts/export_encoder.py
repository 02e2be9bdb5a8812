"""`fql export-encoder`: the encoder of a run's checkpoint, as a folder of its own."""

from encoders.saved import SavedEncoder
from fql.agent import abstract_state
from fql.devices import one_device_mesh
from fql.envs.tasks import find_task
from fql.errors import FQLError
from fql.networks import Params, encoder_of
from fql.pretraining import abstract_pretrain_state
from fql.reports.tables import tell
from fql.training.checkpoints import CheckpointReader
from fql.training.pretrain_config import PretrainSpec, read_pretrain_spec
from fql.training.run_folder import RunFolder, RunSpec, read_spec
from fql.training.saved_encoders import save_encoder_folder
from scripts.arguments import ExportEncoder
from scripts.pretrain import describe_encoder


def run(args: ExportEncoder) -> None:
    """Writes the folder; says what is in it.

    Raises:
        FQLError: no run, no sound checkpoint, or an agent without an encoder.
        EncoderError: the folder exists.
    """
    folder = RunFolder(args.run)
    if folder.pretrain_spec.exists():
        params, saved = read_pretrained(folder, read_pretrain_spec(folder), args.step)
    else:
        params, saved = read_trained(folder, read_spec(folder), args.step)
    save_encoder_folder(args.out, params, saved)
    print(
        f'{args.out}: {saved.encoder}, {saved.frame_stack} frame(s) of '
        f'{"x".join(map(str, saved.image_shape))}, {saved.objective} on {saved.dataset}, '
        f'{saved.step:,} updates'
    )


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
