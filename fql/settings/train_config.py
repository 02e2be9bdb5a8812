"""Every setting of a training run, as frozen dataclasses, and their JSON form."""

import dataclasses
import difflib
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from data_pipeline.schema import from_json
from fql.agents.configs import AGENT_CONFIGS, AgentConfig, FQLConfig
from fql.augmentation_config import AugmentationConfig
from fql.envs.tasks import OWN_TASK
from fql.errors import FQLError
from fql.settings.bounds import check_bounds, raise_unless
from fql.settings.flags import flag_of


@dataclass(frozen=True)
class OnlineConfig:
    """The online phase, after the `steps` offline updates."""

    online_steps: int = 0
    """Environment steps after the offline updates (0: no online phase)."""
    updates_per_env_step: int = 1
    """Updates for each environment step."""
    offline_ratio: Annotated[
        float | Literal['uniform'], tyro.conf.arg(metavar='{uniform,SHARE}')
    ] = 'uniform'
    """uniform: draw batches from data and replay together. Else the share of each batch that comes
    from the data, the rest from the replay; 0.5 is RLPD's."""
    online_warmup: int = 0
    """Environment steps before the first online update."""
    online_workers: int = 1
    """Environments that are stepped together, each in its own process."""
    exploration: Literal['none', 'ucb'] = 'none'
    """none: only the policy's own noise. ucb: of several actions of the one-step policy, the one
    with the largest mean + ucb-beta * std of the critics."""
    ucb_candidates: int = 32
    """Actions that ucb chooses from."""
    ucb_beta: float = 1.0
    """Weight of the critics' disagreement in ucb."""
    alpha: Annotated[float | None, tyro.conf.arg(name='online.alpha')] = None
    """alpha in the online phase; by default the published one, or that of the offline updates.
    --alpha sets both."""
    encoder_lr_multiplier: Annotated[float, tyro.conf.arg(name='online.encoder-lr-multiplier')] = (
        1.0
    )
    """Factor on the encoder's learning rate in the online phase."""
    source: Annotated[
        str, tyro.conf.arg(name='online.from'), tyro.conf.Fixed, tyro.conf.SuppressFixed
    ] = ''
    """The offline run that the online phase starts from, set by --from. It is read only when the
    run starts."""


@dataclass(frozen=True)
class TrainConfig:
    """A training run. With (seed, step) it determines every batch and every update."""

    task: str
    """The task, by OGBench's or D4RL's name (fql tasks lists them), such as
    visual-cube-single-play-singletask-task1-v0. Or `own`: the one of the rewards in --dataset
    itself, evaluated in --env if there is one."""
    env: str = ''
    """For task own: the Gymnasium environment to evaluate in, MODULE:ID; importing MODULE, from the
    current folder or installed, registers ID."""
    dataset: str = ''
    """Name of the prepared dataset; by default the one the task's name implies."""
    data_dir: str = ''
    """Data folder; default $FQL_DATA_DIR, else under the user's cache folder."""
    seed: int = 0
    """Seed of parameters, batches and draws."""
    steps: int = 500_000
    """Number of updates on the data alone; the online phase, if there is one, follows."""
    batch_size: int = 256
    """Transitions in a batch."""
    frame_stack: int = 3
    """Frames, or states, in an observation (1: no stacking)."""
    shift_probability: float = 0.5
    """Probability that a batch's images are randomly shifted (up to 3 pixels)."""
    latent_cache: Literal['off', 'float32', 'float16'] = 'float32'
    """With a frozen encoder: compute the latents of all rows once and train on these, in files of
    this type beside the data; only where images are not changed at random."""
    updates_per_call: int = 0
    """Updates that one call of the compiled step makes; more save time where updates are short. 0:
    20 on vectors and cached latents, 1 on images. On CPUs always 1 on images."""
    log_interval: int = 1_000
    """Updates between rows of train.csv (0: none)."""
    eval_interval: int = 100_000
    """Updates between evaluations; one more at the end (0: none at all)."""
    eval_episodes: int = 50
    """Episodes of an evaluation."""
    eval_workers: int = 0
    """Processes that run environments (0: one for each processor, at most 16)."""
    eval_videos: int = 2
    """How many of the first episodes of an evaluation to record as a video (0: none)."""
    eval_seed: int = 10_000
    """Episode i of every evaluation is reset with this seed plus i."""
    max_episode_steps: int = 0
    """Longest episode (0: the environment's own limit)."""
    env_step_seconds: float = 300.0
    """Longest time that a step of an environment may take. One that takes longer hangs: its process
    is replaced and the episode is repeated once."""
    success_timing: Literal['pre', 'post'] = 'post'
    """When success is judged in evaluations of OGBench's tasks: after a step (post), as in the
    paper, or before it (pre), as the data are labelled. The online phase always uses pre."""
    save_interval: int = 50_000
    """Updates between checkpoints; one more at the end (0: none at all)."""
    keep_latest: int = 3
    """Checkpoints kept besides the best by success (or by D4RL's score, or the return)."""
    keep_interval: int = 0
    """Checkpoints at multiples of this many updates that are never deleted (0: none)."""
    shard_params: bool = False
    """Spread large parameters over the devices (FSDP) instead of keeping a copy on each."""
    wandb_project: str = ''
    """Also send the metrics to this Weights & Biases project (needs the extra `wandb`)."""
    agent: AgentConfig = field(default_factory=FQLConfig)
    augmentation: AugmentationConfig = field(default_factory=AugmentationConfig)
    online: OnlineConfig = field(default_factory=OnlineConfig)

    @property
    def total_updates(self) -> int:
        """Updates of the offline and the online phase together."""
        online = self.online
        return self.steps + online.updates_per_env_step * max(
            0, online.online_steps - online.online_warmup
        )


@dataclass(frozen=True)
class Processes:
    """Several processes that train together."""

    coordinator: str = ''
    """HOST:PORT of the first of several processes that train together, each started with this
    same command and its own --process-id; `auto` on clusters that JAX knows (Slurm, TPU pods)."""
    num_processes: int = 1
    """How many processes train together."""
    process_id: int = 0
    """The index of this process, from 0."""


RESUMABLE_FIELDS = frozenset(
    {
        'data_dir',
        'steps',
        'online_steps',
        'updates_per_call',
        'eval_interval',
        'eval_workers',
        'eval_videos',
        'env_step_seconds',
        'keep_latest',
        'keep_interval',
        'shard_params',
        'wandb_project',
    }
)
"""Fields that may differ when a run is resumed: they change no update made so far."""


def validate_config(config: TrainConfig) -> None:
    """Raise FQLError, naming the field, when a value makes no sense."""
    check_bounds(config)
    check_environment(config)
    encoder = config.agent.encoder
    bc_flow_trains_encoder = getattr(config.agent, 'bc_flow_trains_encoder', True)
    pessimism = getattr(config.agent, 'critic_pessimism', 0)
    checks = {
        'eval-episodes must be at least 1 (eval-interval 0 turns evaluation off)': (
            config.eval_episodes >= 1 or config.eval_interval == 0
        ),
        'task own needs --dataset': config.task != OWN_TASK or config.dataset != '',
        'task own has no environment: name one with --env, or set eval-interval to 0': (
            config.task != OWN_TASK or config.eval_interval == 0 or config.env != ''
        ),
        'encoder.from needs --encoder.mode finetune or frozen': (
            not encoder.source or encoder.mode != 'scratch'
        ),
        f'encoder.mode {encoder.mode} needs --encoder.from': (
            bool(encoder.source) or encoder.mode == 'scratch'
        ),
        'encoder.mode frozen needs --encoder.sharing shared: one encoder, kept as it is': (
            encoder.mode != 'frozen' or encoder.sharing == 'shared'
        ),
        'no-bc-flow-trains-encoder needs a shared encoder that is trained': (
            bc_flow_trains_encoder or (encoder.sharing == 'shared' and encoder.mode != 'frozen')
        ),
        'encoder.lr-multiplier and encoder.unfreeze-step need --encoder.mode finetune': (
            encoder.mode == 'finetune'
            or (encoder.lr_multiplier == 1 and encoder.unfreeze_step == 0)
        ),
        'hidden-dims must be one or more widths': len(config.agent.hidden_dims) > 0,
        'critic-pessimism needs --q-agg mean': (
            pessimism == 0 or getattr(config.agent, 'q_agg', 'mean') == 'mean'
        ),
        'critic-pessimism needs --num-critics of at least 2: one does not disagree': (
            pessimism == 0 or getattr(config.agent, 'num_critics', 2) >= 2
        ),
        'steps must be at least 1, unless --online-steps is given': (
            config.steps >= 1 or config.online.online_steps >= 1
        ),
    }
    raise_unless(checks)
    if config.online.online_steps:
        check_online(config)


def check_online(config: TrainConfig) -> None:
    """Raise FQLError when the settings of an online phase make no sense."""
    online, agent = config.online, config.agent
    ratio = online.offline_ratio
    checks = {
        'task own has no environment to go online in: name one with --env MODULE:ID': (
            config.task != OWN_TASK or config.env != ''
        ),
        f'offline-ratio must be uniform or lie in [0, 1], not {ratio}': (
            ratio == 'uniform' or 0 <= float(ratio) <= 1
        ),
        f'offline-ratio {ratio} is no row of a batch of {config.batch_size}: give more, or 0': (
            ratio in ('uniform', 0) or config.batch_size * float(ratio) >= 1
        ),
        f'online-steps and online-warmup must be multiples of online-workers '
        f'({online.online_workers})': (
            online.online_steps % online.online_workers == 0
            and online.online_warmup % online.online_workers == 0
        ),
        f'online-warmup {online.online_warmup:,} leaves no update of '
        f'{online.online_steps:,} online-steps': online.online_warmup < online.online_steps,
        'exploration ucb is of agent fql, whose one-step policy gives the candidates': (
            online.exploration == 'none' or agent.name == 'fql'
        ),
        'exploration ucb needs --num-critics of at least 2: one does not disagree': (
            online.exploration == 'none' or getattr(agent, 'num_critics', 2) >= 2
        ),
        'ucb-candidates and ucb-beta need --exploration ucb': (
            online.exploration == 'ucb'
            or (online.ucb_candidates, online.ucb_beta)
            == (OnlineConfig.ucb_candidates, OnlineConfig.ucb_beta)
        ),
        'online.encoder-lr-multiplier is without effect on a frozen encoder': (
            online.encoder_lr_multiplier == 1 or agent.encoder.mode != 'frozen'
        ),
        f'online.alpha: agent {agent.name} has no alpha': (
            online.alpha is None or hasattr(agent, 'alpha')
        ),
    }
    raise_unless(checks)


def check_given_flags(online: OnlineConfig, given: Collection[str]) -> None:
    """Raise FQLError if a flag of the online phase was given, and there is none.

    The configuration does not tell: a preset may have other values than `OnlineConfig`.

    Args:
        given: names of flags, without dashes before them.
    """
    flags = (flag_of(online, entry.name).replace('_', '-') for entry in dataclasses.fields(online))
    for flag in flags:
        if flag in given and online.online_steps == 0 and 'online-steps' not in given:
            raise FQLError(f'{flag} is a setting of the online phase: give --online-steps too')


def check_environment(config: TrainConfig) -> None:
    """Raise FQLError if the named environment cannot belong to the task."""
    checks = {
        'env is for --task own; other tasks have their environment': (
            config.env == '' or config.task == OWN_TASK
        ),
        f'env must be MODULE:ID, not {config.env!r}': (
            config.env == '' or re.fullmatch(r'[\w.]+:[\w./-]+', config.env) is not None
        ),
    }
    raise_unless(checks)


def config_to_dict(config: TrainConfig) -> dict[str, Any]:
    """Plain JSON values; `agent`, with its name, `augmentation` and `online` nested."""
    values = dataclasses.asdict(config)
    values['agent'] = {'name': config.agent.name, **values['agent']}
    return values


def config_from_dict(values: Any, origin: Path) -> TrainConfig:
    """The inverse of `config_to_dict`, after JSON.

    Raises:
        FQLError: when fields are missing, unknown or of another type, with their names and
            `origin`.
    """
    try:
        agent = dict(values['agent'])
        agent_class = AGENT_CONFIGS[agent.pop('name')]
    except (KeyError, TypeError, ValueError):
        names = ', '.join(AGENT_CONFIGS)
        message = f'{origin}: no field agent with a name that is one of {names}'
        raise FQLError(f'{message} (written by another version?)') from None
    rest = {name: value for name, value in values.items() if name != 'agent'}
    try:
        return from_json(TrainConfig, rest, given={'agent': from_json(agent_class, agent)})
    except ValueError as error:
        raise FQLError(f'{origin}: {error} (written by another version?)') from None


def differing_fields(stored: Any, asked: Any) -> list[str]:
    """Lines 'field: stored X, asked Y' for every field that must not differ on resume.

    Args:
        stored, asked: configurations of one class.
    """
    before, after = _flat(stored), _flat(asked)
    return [
        f'{name}: stored {before.get(name)!r}, asked {after.get(name)!r}'
        for name in {**before, **after}
        if name not in RESUMABLE_FIELDS and before.get(name) != after.get(name)
    ]


def with_one_alpha(config: TrainConfig) -> TrainConfig:
    """The configuration whose online phase has the alpha of the offline updates."""
    return dataclasses.replace(config, online=dataclasses.replace(config.online, alpha=None))


def with_settings(config: TrainConfig, settings: Mapping[str, Any]) -> TrainConfig:
    """The configuration with other values, by flag: `{'batch-size': 8, 'encoder.size': 'impala'}`.

    Args:
        settings: JSON values; a list where the flag takes several values. An `alpha` without
            `online.alpha` holds in the online phase too.

    Raises:
        FQLError: the agent has no such flag, or its value is of another type or makes no sense.
    """
    flags = {name.replace('_', '-') for name in _flat(config)} - {'agent'}
    if unknown := [name for name in settings if name not in flags]:
        nearest = difflib.get_close_matches(unknown[0], flags)
        hint = f'; the nearest are {", ".join(nearest)}' if nearest else ''
        raise FQLError(f'agent {config.agent.name} has no setting {unknown[0]!r}{hint}')
    if 'alpha' in settings:
        config = with_one_alpha(config)
    values = config_to_dict(_replaced(config, settings))
    agent = {name: value for name, value in values.pop('agent').items() if name != 'name'}
    # As after JSON, which turns tuples into lists; a date of TOML is text on a command line.
    values, agent = json.loads(json.dumps([values, agent], default=str))
    try:
        agent_config = from_json(type(config.agent), agent)
        changed = from_json(TrainConfig, values, given={'agent': agent_config})
    except ValueError as error:
        raise FQLError(str(error)) from None
    validate_config(changed)
    check_given_flags(changed.online, settings)
    return changed


def setting_text(value: Any) -> str:
    """A setting's value for a reader."""
    if value is None:
        return '-'
    if isinstance(value, bool):
        return 'on' if value else 'off'
    if isinstance(value, tuple):
        return ' '.join(map(setting_text, value))
    if isinstance(value, int):
        return f'{value:,}'
    return f'{value:g}' if isinstance(value, float) else str(value)


def settings_of_results(config: TrainConfig) -> dict[str, Any]:
    """The settings that a run's results depend on, by flag."""
    others = RESUMABLE_FIELDS - {'steps', 'online_steps', 'eval_interval'}
    others |= {'log_interval', 'save_interval'}
    return {
        name.replace('_', '-'): value for name, value in _flat(config).items() if name not in others
    }


def _replaced(config: Any, settings: Mapping[str, Any]) -> Any:
    changes = {}
    for entry in dataclasses.fields(config):
        value, flag = getattr(config, entry.name), flag_of(config, entry.name).replace('_', '-')
        if dataclasses.is_dataclass(value):
            changes[entry.name] = _replaced(value, settings)
        elif flag in settings:
            changes[entry.name] = settings[flag]
    return dataclasses.replace(config, **changes)


def _flat(config: Any) -> dict[str, Any]:
    """The fields of a configuration and of those nested in it, by flag; `agent` is its name."""
    flat: dict[str, Any] = {}
    for entry in dataclasses.fields(config):
        value = getattr(config, entry.name)
        if isinstance(value, AgentConfig):
            flat['agent'] = value.name
        if dataclasses.is_dataclass(value):
            flat |= _flat(value)
        else:
            flat[flag_of(config, entry.name)] = value
    return flat
