"""A robot with two cameras of different sizes and proprioception, and its demonstrations."""

import io
import json
from pathlib import Path

import gymnasium
import h5py
import numpy as np
from gymnasium.spaces import Box, Dict

ROBOMIMIC_KEYS = {
    'agentview_image': 'agentview_image',
    'wrist': 'robot0_eye_in_hand_image',
    'eef_pos': 'eef_pos',
}


class Arm(gymnasium.Env):
    """A point to be moved to the origin, seen by two cameras as brightness."""

    observation_space = Dict(
        {
            'agentview_image': Box(0, 255, (12, 16, 3), np.uint8),
            'wrist': Box(0, 255, (8, 9, 3), np.uint8),
            'eef_pos': Box(-2, 2, (2,), np.float64),
            'joints': Dict({'angle': Box(-1, 1, (1,))}),
        }
    )
    action_space = Box(-1, 1, (2,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.position = self.np_random.uniform(-1, 1, 2)
        return self.observation(), {}

    def step(self, action):
        self.position = np.clip(self.position + 0.2 * np.asarray(action, np.float64), -2, 2)
        reached = bool(np.linalg.norm(self.position) < 0.2)
        return self.observation(), float(reached) - 1, reached, False, {'success': float(reached)}

    def observation(self):
        shade = np.uint8(60 * np.abs(self.position) + 1)
        return {
            'agentview_image': np.full((12, 16, 3), shade[0]),
            'wrist': np.full((8, 9, 3), shade[1]),
            'eef_pos': self.position.copy(),
            'joints': {'angle': np.zeros(1, np.float32)},
        }

    def render(self):
        return np.zeros((16, 16, 3), np.uint8)


class Blind(Arm):
    observation_space = Dict({'eef_pos': Arm.observation_space['eef_pos']})


class Small(Arm):
    observation_space = Dict(
        {**Arm.observation_space.spaces, 'wrist': Box(0, 255, (8, 8, 3), np.uint8)}
    )


class Plain(Arm):
    observation_space = Arm.observation_space['eef_pos']


for _env in (Arm, *Arm.__subclasses__()):
    gymnasium.register(f'{_env.__name__}-v0', f'{__name__}:{_env.__name__}', max_episode_steps=6)


def roll_out(count: int) -> list[list[tuple]]:
    """Random episodes: (observation, next observation, action, reward, is the task done)."""
    env = gymnasium.make('robot_arm:Arm-v0')
    env.action_space.seed(0)
    episodes = []
    for number in range(count):
        observation, _ = env.reset(seed=number)
        rows, over = [], False
        while not over:
            action = env.action_space.sample()
            following, reward, terminated, truncated, _ = env.step(action)
            over = terminated or truncated
            rows.append((observation, following, action, reward, terminated))
            observation = following
        episodes.append(rows)
    return episodes


def write_robomimic(folder: Path, episodes: list[list[tuple]]) -> tuple[str, ...]:
    """Writes an HDF5 file; returns the arguments of `fql prepare` except the name."""
    with h5py.File(folder / 'demos.hdf5', 'w') as file:
        for number, rows in enumerate(episodes):
            seen, after, actions, rewards, dones = zip(*rows, strict=True)
            demo = file.create_group(f'data/demo_{number}')
            demo['actions'], demo['rewards'], demo['dones'] = actions, rewards, dones
            for name, key in ROBOMIMIC_KEYS.items():
                demo[f'obs/{key}'] = [each[name] for each in seen]
                demo[f'next_obs/{key}'] = [each[name] for each in after]
    return ('--source', str(folder / 'demos.hdf5'), *key_flags(ROBOMIMIC_KEYS))


def write_rlds(folder: Path, episodes: list[list[tuple]]) -> tuple[str, ...]:
    """The same as an RLDS dataset."""
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.dataset_info import DatasetIdentity

    features = {
        'agentview_image': tfds.features.Image(shape=(12, 16, 3)),
        'wrist': tfds.features.Image(shape=(8, 9, 3)),
        'eef_pos': tfds.features.Tensor(shape=(2,), dtype=np.float64),
    }
    scalars = {'reward': np.float32, 'is_last': np.bool_, 'is_terminal': np.bool_}
    step = {'observation': features, 'action': tfds.features.Tensor(shape=(2,), dtype=np.float32)}
    info = tfds.core.DatasetInfo(
        builder=DatasetIdentity('arm', tfds.core.Version('1.0.0'), str(folder), __name__),
        features=tfds.features.FeaturesDict({'steps': tfds.features.Dataset(step | scalars)}),
    )
    writer = tfds.core.SequentialWriter(info, 100, file_format='array_record')
    writer.initialize_splits(['train'])
    for rows in episodes:
        steps = [
            {
                'observation': {name: seen[name] for name in features},
                'action': action,
                'reward': reward,
                'is_last': False,
                'is_terminal': False,
            }
            for seen, _, action, reward, _ in rows
        ]
        _, last, action, _, done = rows[-1]
        end = {'observation': {name: last[name] for name in features}, 'action': action}
        steps.append({**end, 'reward': 0.0, 'is_last': True, 'is_terminal': done})
        writer.add_examples({'train': [{'steps': steps}]})
    writer.close_all()
    keys = {name: f'observation/{name}' for name in features}
    return ('--tfds', str(folder), '--reward-key', 'reward', *key_flags(keys))


def write_lerobot(folder: Path, episodes: list[list[tuple]]) -> tuple[str, ...]:
    """The same in LeRobot's layout 3.0, a camera as a video, the other as encoded images."""
    import imageio_ffmpeg
    import pyarrow as pa
    import pyarrow.parquet as pq
    from PIL import Image

    keys = {
        'agentview_image': 'observation.images.agentview',
        'wrist': 'observation.images.wrist',
        'eef_pos': 'observation.state',
    }
    kinds = {'agentview_image': 'video', 'wrist': 'image', 'eef_pos': 'float64'}
    shapes = {name: Arm.observation_space[name].shape for name in keys}
    features = {key: {'dtype': kinds[name], 'shape': shapes[name]} for name, key in keys.items()}
    features |= {name: {'dtype': 'float32', 'shape': [1]} for name in ('next.reward', 'next.done')}
    features['action'] = {'dtype': 'float32', 'shape': [2]}
    rows, meta, frames = [], [], []
    for number, episode in enumerate(episodes):
        video = f'videos/{keys["agentview_image"]}'
        places = {'data/chunk_index': 0, 'data/file_index': 0}
        places |= {f'{video}/chunk_index': 0, f'{video}/file_index': 0}
        start = {f'{video}/from_timestamp': len(frames) / 10}
        meta.append({'episode_index': number, 'length': len(episode), **places, **start})
        for step, (seen, _, action, reward, done) in enumerate(episode):
            frames.append(seen['agentview_image'])
            picture = io.BytesIO()
            Image.fromarray(seen['wrist']).save(picture, format='PNG')
            rows.append(
                {
                    'episode_index': number,
                    'frame_index': step,
                    'timestamp': step / 10,
                    keys['eef_pos']: seen['eef_pos'].tolist(),
                    keys['wrist']: {'bytes': picture.getvalue(), 'path': None},
                    'action': action.tolist(),
                    'next.reward': reward,
                    'next.done': done,
                }
            )
    files = {
        'data': folder / 'data/chunk-000/file-000.parquet',
        'meta': folder / 'meta/episodes/chunk-000/file-000.parquet',
        'video': folder / f'videos/{keys["agentview_image"]}/chunk-000/file-000.mp4',
    }
    for path in files.values():
        path.parent.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), files['data'])
    pq.write_table(pa.Table.from_pylist(meta), files['meta'])
    writer = imageio_ffmpeg.write_frames(str(files['video']), (16, 12), fps=10, macro_block_size=1)
    writer.send(None)
    for frame in frames:
        writer.send(np.ascontiguousarray(frame))
    writer.close()
    info = {
        'codebase_version': 'v3.0',
        'fps': 10,
        'data_path': 'data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet',
        'video_path': 'videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4',
        'splits': {'train': f'0:{len(episodes)}'},
        'features': features,
    }
    (folder / 'meta' / 'info.json').write_text(json.dumps(info))
    return ('--source', str(folder), *key_flags(keys))


def key_flags(keys: dict[str, str]) -> tuple[str, ...]:
    """`--observation-key` for each."""
    return tuple(
        text for name, key in keys.items() for text in ('--observation-key', f'{name}={key}')
    )
