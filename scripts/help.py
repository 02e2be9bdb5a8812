"""What `--help` prints, in plain text: most used first, examples on separate lines."""

import argparse
import inspect
import re
import shutil
import textwrap
import warnings
from collections.abc import Mapping
from fnmatch import fnmatch
from typing import Any

import tyro

from fql.command import command

DESCRIPTION = 'Flow Q-Learning from pixels: offline reinforcement learning on image datasets.'
FAMILIES = {'inspect': 'Look into', 'benchmark': 'Measure'}
"""Commands of two words, by the first one."""
FIRST_STEPS = """\
A first run, of some minutes, that downloads nothing:  fql quickstart
On OGBench's data:  fql prepare visual-cube-single-play-v0
                    fql train --task visual-cube-single-play-singletask-task1-v0
fql COMMAND --help says more; fql --version prints the version."""

GROUPS = {
    'the run': 'task agent dataset objective run_dir resume steps seed preset source step '
    'data_dir verify_data',
    'agent': 'agent.alpha agent.*',
    'encoder': 'encoder* cameras agent.encoder* agent.bc_flow_trains_encoder latent_*',
    'training': 'batch_size frame_stack horizon shift_probability lr tau hidden_dims mask_ratio',
    'online phase': 'online.online_steps online.*',
    'evaluation': 'env eval_* max_episode_steps env_* success_timing',
    'checkpoints and logs': 'save_interval keep_* log_interval wandb_project',
    'augmentation': 'augmentation.*',
    'devices and processes': 'updates_per_call shard_params processes.*',
    'more options': '*',
}
"""In which order `fql train --help` and `fql pretrain --help` show which settings; of the patterns
that fit one, the longest decides."""


class Formatter(argparse.HelpFormatter):
    """A formatter that does not break the names of options."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(' '.join(text.split()), width, break_on_hyphens=False)


def overview(summaries: Mapping[str, str], family: str = '') -> str:
    """All commands, or those of a family, a line for each."""
    if family:
        lines, about, after = dict(summaries), f'{FAMILIES[family]}:', ''
        lines = {name: text for name, text in lines.items() if name.startswith(f'{family} ')}
        usage = f'fql {family} {{{",".join(name.split()[1] for name in lines)}}}'
    else:
        usage, about, after = 'fql COMMAND', DESCRIPTION, f'\n\n{FIRST_STEPS}'
        lines = {name: text for name, text in summaries.items() if ' ' not in name}
        for first, text in FAMILIES.items():
            members = [name.split()[1] for name in summaries if name.startswith(f'{first} ')]
            lines[first] = f'{text}: {", ".join(members)}.'
    width = max(map(len, lines)) + 2
    table = '\n'.join(f'  {name:{width}}{text}' for name, text in lines.items())
    if not family and command() != 'fql':
        after += f'\nHere, the program is called: {command()}'
    return f'usage: {usage} ...\n\n{about}\n\n{table}{after}'


def command_help(prog: str, declared: Any, default: Any) -> str:
    """The usage, what the command does, and its options.

    Args:
        declared: the class of the command's arguments.
        default: the arguments to start from, or None.
    """
    actions = [tidied(action) for action in declared_actions(declared, default)]
    positional = [action for action in actions if not action.option_strings]
    required = [action for action in actions if action.option_strings and action.required]
    parts = [
        f'[{action.metavar}]' if action.nargs == '?' else f'{action.metavar}'
        for action in positional
    ]
    parts += [f'{action.option_strings[0]} {action.metavar}' for action in required]
    width = max(38, min(shutil.get_terminal_size().columns, 120) - 2)
    formatter = Formatter(prog, max_help_position=30, width=width)
    for title, members in grouped(actions).items():
        formatter.start_section(title)
        formatter.add_arguments(members)
        formatter.end_section()
    about = reflowed(inspect.cleandoc(declared.__doc__), width)
    usage = f'usage: {" ".join([prog, *parts, "[options]"])}'
    return f'{usage}\n\n{about}\n\n{formatter.format_help().rstrip()}'


def declared_actions(declared: Any, default: Any) -> list[argparse.Action]:
    """The options that tyro makes of a class."""
    with warnings.catch_warnings():
        # The only way that tyro 1 has to hand out its options; its own help joins all lines.
        warnings.simplefilter('ignore', DeprecationWarning)
        parser = tyro.extras.get_parser(
            declared, default=default, config=(tyro.conf.OmitArgPrefixes,)
        )
    return [action for action in parser._actions if action.dest != 'help']


def tidied(action: argparse.Action) -> argparse.Action:
    """The option without words that mean something in Python only."""
    text = re.sub(r'\x1b\[[\d;]*m', '', str(action.help))
    action.help = re.sub(r" \(default: (None|''|\"\"|)\)$", '', text)
    if action.metavar:
        action.metavar = re.sub(r'{None}\||(?<={)None,', '', str(action.metavar))
    if not action.option_strings:
        action.metavar = action.dest.upper()
        action.help = action.help.removesuffix(' (required)')
    if action.nargs in ('*', '+'):
        action.metavar = re.sub(r'^\[(.*) \[.*\]\]$', r'\1', str(action.metavar)) + ' ...'
        action.nargs = None
    return action


def grouped(actions: list[argparse.Action]) -> dict[str, list[argparse.Action]]:
    """The options by group; in one group where no run is configured."""
    if not any(action.dest.startswith('config.') for action in actions):
        return {'options': actions}
    patterns = [(title, name) for title, names in GROUPS.items() for name in names.split()]
    places: dict[str, list[tuple[int, argparse.Action]]] = {title: [] for title in GROUPS}
    for action in actions:
        name = action.dest.removeprefix('config.').replace('-', '_')
        fits = [i for i, (_, pattern) in enumerate(patterns) if fnmatch(name, pattern)]
        place = max(fits, key=lambda i: len(patterns[i][1]))
        places[patterns[place][0]].append((place, action))
    return {
        title: [action for _, action in sorted(members, key=lambda member: member[0])]
        for title, members in places.items()
        if members
    }


def reflowed(text: str, width: int) -> str:
    """A docstring whose paragraphs fill the width; commands, a line each, are left as they are."""
    return '\n\n'.join(
        textwrap.indent(paragraph, '  ')
        if paragraph.startswith(('fql ', 'tfds.'))
        else textwrap.fill(paragraph, width, break_on_hyphens=False)
        for paragraph in text.split('\n\n')
    )
