"""Train FQL in a loop of your own: store, loader, agent, learner.

python train_in_python.py 1000    (after: fql quickstart, which makes the data)
"""

import sys

import jax

from data_pipeline.data_dir import dataset_folder
from data_pipeline.loader import LoaderConfig, make_batches
from data_pipeline.store.frame_store import open_store
from data_pipeline.store.labels import task_labels
from fql.agents.configs import EncoderConfig, FQLConfig, Spec
from fql.agents.registry import make_agent
from fql.batch import LOADED_FIELDS, batch_from_inputs
from fql.envs.tasks import QUICKSTART_TASK, find_task
from fql.learner import Learner, make_optimizer


def main(updates):
    task = find_task(QUICKSTART_TASK)
    store = open_store(dataset_folder('', task.dataset))  # Memory-mapped: of any size, at once.
    split = store.splits['train']
    # By OGBench's environment in a spawned process, which imports this file: hence the last lines.
    rewards, masks = task_labels(store, 'train', task.label_env_id)
    loader = LoaderConfig(batch_size=128, shift_probability=0.1, seed=0)

    encoder = EncoderConfig(size='impala_debug')
    config = FQLConfig(alpha=0.5, lr=5e-4, hidden_dims=(128, 128), encoder=encoder)
    agent = make_agent(config, Spec(split.observations.shape[1:], split.actions.shape[1]))
    learner = Learner(agent, make_optimizer(config.lr, config.encoder))
    state = learner.init(seed=0)
    update = jax.jit(lambda state, arrays: learner.update(state, batch_from_inputs(arrays)))

    for n, arrays in enumerate(make_batches(split, rewards, masks, loader, start_step=0), start=1):
        state, metrics = update(state, {name: arrays[name] for name in LOADED_FIELDS})
        if n % 100 == 0 or n == updates:
            print(n, *(f'{name} {float(metrics[name]):.4f}' for name in ('loss', 'critic/q_mean')))
        if n == updates:
            break

    keys = jax.random.split(jax.random.key(1), 4)
    actions = agent.sample_actions(state.params, split.observations[:4], keys, 'one_step')
    print(actions[:, 0])


if __name__ == '__main__':
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
