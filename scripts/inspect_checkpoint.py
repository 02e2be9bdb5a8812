"""`fql inspect checkpoint`: what a checkpoint holds, as JSON."""

import json

from encoders.leaves import tree_digest
from fql.compiled import abstract_state
from fql.devices import one_device_mesh
from fql.learner import count_parameters
from fql.output import print_notice
from fql.runs.checkpoints import CheckpointReader
from fql.runs.run_folder import RunFolder
from fql.runs.run_learner import make_learner
from fql.runs.run_spec import read_identity, read_spec
from scripts.inspect_args import InspectCheckpoint


def run(args: InspectCheckpoint) -> None:
    """Print step, parameter count and digest of one checkpoint of a run."""
    run_folder = RunFolder(args.run)
    spec = read_spec(run_folder)
    reader = CheckpointReader(run_folder.checkpoints, read_identity(run_folder.spec))
    with reader.reading(args.step, print_notice) as step:
        abstract = abstract_state(make_learner(spec), one_device_mesh())
        state, online = reader.restore(abstract, step), reader.metadata(step).get('online')
    report = {
        'step': int(state.step),
        'parameters': count_parameters(state.params),
        'sha256': tree_digest(state),
    }
    if online:
        report |= {'env_steps': online['env_steps'], 'replay': online['streams']}
    print(json.dumps(report, indent=2))
