"""What a run of training prints at its start and at its end."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from data_pipeline.loader import LoaderConfig, num_starts, num_whole
from data_pipeline.observations import describe_observations
from data_pipeline.store.frame_store import Split
from encoders.description import read_encoder
from encoders.errors import EncoderError
from fql.agents.configs import AgentConfig
from fql.envs.tasks import find_task
from fql.learner import Params, TrainState, count_parameters
from fql.output import format_summary
from fql.reports.published import published_result
from fql.runs.measures import read_results
from fql.runs.run_folder import RunFolder
from fql.runs.run_spec import RunSpec, read_spec
from fql.settings.presets import has_preset
from fql.settings.train_config import setting_text
from fql.training.comparability import comparability
from fql.training.latent_cache import describe_cache
from fql.training.online import describe_online
from fql.training.training_data import LabelledSplit, loader_config


def encoder_text(spec: RunSpec, state: TrainState) -> str:
    """The encoder's size, and where it comes from."""
    encoder = spec.config.agent.encoder
    if not spec.has_images:
        return 'none'
    text = f'{encoder.size}, {encoder.sharing}'
    if isinstance(spec.observation_shape, dict):
        text += ', one for all cameras' if encoder.cameras == 'shared' else ', one for each camera'
    if encoder.mode == 'scratch':
        return text
    text += f', {encoder.mode}, from {encoder.source}'
    if int(state.step) > 0:
        return text
    try:
        saved = read_encoder(Path(encoder.source))
    except EncoderError:  # A resumed run needs the folder no longer.
        return text
    return f'{text} ({saved.objective} on {saved.dataset}, {saved.step:,} updates)'


def describe_agent(agent: AgentConfig) -> str:
    """The agent's name, and the settings that only some agents have."""
    common = {entry.name for entry in dataclasses.fields(AgentConfig)}
    settings = {
        entry.name: getattr(agent, entry.name)
        for entry in dataclasses.fields(agent)
        if entry.name not in common
    }
    shown = (f'{name.replace("_", "-")} {setting_text(value)}' for name, value in settings.items())
    return ', '.join([agent.name, f'discount {agent.discount:g}', *shown])


def describe_chunks(split: Split, loader: LoaderConfig) -> str:
    """From which share of the samples the critics learn; empty if from all."""
    share = num_whole(split, loader) / num_starts(split, loader)
    if round(share, 4) == 1:
        return ''
    return (
        f'of {loader.horizon} steps: {share:.2%} lie within their trajectory, and critics learn '
        'from no others'
    )


def start_summary(
    spec: RunSpec,
    data: dict[str, LabelledSplit],
    state: TrainState,
    folder: RunFolder,
    frozen: Params | None,
) -> str:
    """What the run is about to do, on one screen.

    Args:
        frozen: parameters of the frozen encoder whose latents are cached, if there is one.
    """
    config, agent = spec.config, spec.config.agent
    is_frozen = agent.encoder.mode == 'frozen'
    split = data['train'].split
    completed = np.mean(data['train'].masks[split.valid_rows] == 0)
    counts = {
        name: count_parameters(tree)
        for name, tree in state.params.items()
        if count_parameters(tree)
    }
    is_tuned = has_preset(config.agent.name, find_task(config.task))
    advice = 'tune it'
    if getattr(agent, 'normalize_q_loss', False):
        advice = 'try --alpha 0.03, 0.1, 0.3, 1, 3 and 10'
    hint = '' if is_tuned else f'  (no published settings for this agent and task: {advice})'
    chunks = describe_chunks(split, loader_config(data['train'], config))
    lines = {
        'task': config.task,
        'agent': describe_agent(agent),
        'dataset': (
            f'{split.path.parent}: {split.num_transitions:,} transitions in '
            f'{split.terminals.sum():,} trajectories, task complete in {completed:.2%}'
        ),
        'observations': (
            f'{describe_observations(spec.observation_shape, spec.observation_dtype)}, '
            f'actions {spec.action_dim}'
        ),
        **({'chunks': chunks} if chunks else {}),
        'parameters': (
            f'{sum(counts.values()):,} ('
            + ', '.join(f'{name} {count:,}' for name, count in counts.items())
            + ')'
        ),
        'encoder': encoder_text(spec, state),
        **({'latents': describe_cache(data, spec, frozen)} if is_frozen else {}),
        'training': (
            f'updates {int(state.step):,} to {config.total_updates:,}, batch {config.batch_size}, '
            f'seed {config.seed}{hint}'
        ),
        **({'online': describe_online(config)} if config.online.online_steps else {}),
        'devices': (
            f'{jax.device_count()} ({jax.devices()[0].device_kind}) '
            f'in {jax.process_count()} process(es)'
        ),
        'run folder': str(folder.path),
    }
    return format_summary(lines)


def end_summary(folder: RunFolder, updates: int, seconds: float) -> str:
    """What was done, the published results, and where the files are."""
    config = read_spec(folder).config
    task = find_task(config.task)
    measure, results = read_results(folder.eval_csv)
    values = [f'{step:,}: {measure.text(value)}' for step, value in results.items()]
    is_online = config.online.online_steps > 0
    published = published_result(config.agent.name, task.name, online=is_online)
    lines = {
        'done': f'{updates:,} updates in {seconds / 60:.1f} min, evaluations included',
        measure.name: ', '.join(values) or 'not evaluated',
        **({'this score is': comparability(config)} if values and task.returns else {}),
        **({'published': f'{published} ({published.source})'} if published else {}),
        'curves': str(folder.learning_curve),
        'videos': str(folder.videos) if folder.videos.exists() else 'none',
        'run folder': str(folder.path),
    }
    return format_summary(lines)
