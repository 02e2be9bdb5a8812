"""`fql inspect checkpoint`: what a checkpoint holds, as JSON."""

import json

from encoders.leaves import tree_digest
from fql.learner import count_parameters
from fql.output import print_notice
from fql.runs.run_checkpoints import open_checkpoint
from fql.runs.run_folder import RunFolder
from fql.runs.run_spec import read_spec
from scripts.inspect_args import InspectCheckpoint


def run(args: InspectCheckpoint) -> None:
    """Print step, parameter count and digest of one checkpoint of a run."""
    run_folder = RunFolder(args.run)
    opened = open_checkpoint(run_folder, read_spec(run_folder), args.step, print_notice)
    with opened as (step, reader, abstract):
        state, online = reader.restore(abstract, step), reader.metadata(step).get('online')
    report = {
        'step': int(state.step),
        'parameters': count_parameters(state.params),
        'sha256': tree_digest(state),
    }
    if online:
        report |= {'env_steps': online['env_steps'], 'replay': online['streams']}
    print(json.dumps(report, indent=2))
