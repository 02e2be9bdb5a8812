"""Let a trained policy act in an environment of your own program.

python act_in_my_environment.py runs/dots own_dataset:Dot-v0

Neither TensorFlow nor the dataset is needed here; `runs/dots` may also be a folder that
`fql export-policy` wrote.
"""

import sys

import gymnasium

import fql

run, env_id = sys.argv[1:]
policy = fql.load_policy(run)
env = gymnasium.make(env_id)
successes = []
for episode in range(10):
    observation, _ = env.reset(seed=1_000 + episode)
    policy.reset(seed=episode)
    over = False
    while not over:
        action = policy(observation)  # The newest image alone: the policy keeps the stack.
        observation, _, terminated, truncated, info = env.step(action)
        over = terminated or truncated
    successes.append(info['success'])
print(f'success in {sum(successes):g} of {len(successes)} episodes')
