"""Export of the encoder of a run's checkpoint to a folder."""

from pathlib import Path

from encoders.description import SavedEncoder
from fql.compiled import abstract_state
from fql.devices import one_device_mesh
from fql.envs.tasks import find_task
from fql.errors import FQLError
from fql.learner import Params
from fql.output import print_notice
from fql.pretraining.pretrain import describe_encoder
from fql.pretraining.pretrain_config import PretrainSpec, read_pretrain_spec
from fql.pretraining.pretrain_learner import make_pretraining_learner
from fql.pretraining.saved_encoders import save_encoder_folder
from fql.runs.checkpoints import CheckpointReader
from fql.runs.run_checkpoints import open_checkpoint
from fql.runs.run_folder import RunFolder, check_new_folder
from fql.runs.run_learner import agent_of
from fql.runs.run_spec import RunSpec, read_identity, read_spec


def export_encoder(path: Path, step: int | None, out: Path) -> SavedEncoder:
    """Write the encoder of a run; return its description.

    Args:
        path: of the run, a training or a pretraining.
        step: which checkpoint; None: the newest that is sound.
        out: the folder to write.

    Raises:
        FQLError: no run, no sound checkpoint, an agent without an encoder, or a folder among
            checkpoints.
        EncoderError: the folder exists.
    """
    check_new_folder(out)
    folder = RunFolder(path)
    if folder.pretrain_spec.exists():
        params, saved = read_pretrained(folder, read_pretrain_spec(folder), step)
    else:
        params, saved = read_trained(folder, read_spec(folder), step)
    save_encoder_folder(out, params, saved)
    return saved


def read_pretrained(
    folder: RunFolder, spec: PretrainSpec, step: int | None
) -> tuple[Params, SavedEncoder]:
    """The encoder in a pretraining's checkpoint, and its description."""
    reader = CheckpointReader(folder.checkpoints, read_identity(folder.pretrain_spec))
    with reader.reading(step, print_notice) as found:
        abstract = abstract_state(make_pretraining_learner(spec), one_device_mesh())
        params = reader.restore_params(abstract, found)
        return params['encoder'], describe_encoder(spec, found, reader.versions(found))


def read_trained(folder: RunFolder, spec: RunSpec, step: int | None) -> tuple[Params, SavedEncoder]:
    """The encoder of the critic, or of the first head without one; with sharing, the only one."""
    config = spec.config
    if not spec.has_images:
        raise FQLError(f'{folder.path}: observations are vectors, so that it has no encoder')
    agent = agent_of(spec)
    with open_checkpoint(folder, spec, step, print_notice) as (found, reader, abstract):
        params, versions = reader.restore_params(abstract, found), reader.versions(found)
    saved = SavedEncoder(
        encoder=config.agent.encoder.size,
        image_shape=spec.frame_shape,
        frame_stack=config.frame_stack,
        objective=config.agent.name,
        dataset=config.dataset or find_task(config.task).dataset,
        step=found,
        versions=versions,
        cameras=config.agent.encoder.cameras,
    )
    first_head = next(iter(agent.trains_encoder))
    return params['encoders'][agent.encoding.name(first_head)], saved
