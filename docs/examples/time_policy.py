"""Print how long a policy takes to load and to act.

python time_policy.py runs/cube
"""

import sys
import time

started = time.perf_counter()

import numpy as np  # noqa: E402

import fql  # noqa: E402

load_policy = fql.load_policy  # Imports the rest.
imported = time.perf_counter()
policy = fql.load_policy(sys.argv[1])
loaded = time.perf_counter()
observation = np.zeros(policy.observation_shape, policy.observation_dtype)
ends = [loaded]
for _ in range(201):
    policy(observation)
    ends.append(time.perf_counter())
first, *others = np.diff(ends)
print(f'import {imported - started:.2f} s, load {loaded - imported:.2f} s')
print(f'first action {first:.2f} s, then {1e3 * np.median(others):.2f} ms an action')
