"""The documentation against the repository: links, paths, commands and flags."""

import re
import shlex
import shutil
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
import yaml

from fql.agents.configs import AGENT_CONFIGS
from scripts.help import declared_actions
from scripts.main import COMMANDS
from scripts.shared_args import value_of

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / 'README.md', ROOT / 'CONTRIBUTING.md', *sorted((ROOT / 'docs').glob('*.md'))]
BLOCK, INLINE = re.compile(r'```.*?```', re.DOTALL), re.compile(r'`([^`]+)`')
PATH = re.compile(r'`((?:fql|data_pipeline|encoders|scripts|tests|docs)/[\w/.-]+)`')
ELSEWHERE = {'--xla_gpu_deterministic_ops', '--logdir'}
"""Flags of other programs."""

pages = pytest.mark.parametrize('page', PAGES, ids=lambda page: page.name)


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives the headings of a page."""
    headings = re.findall(r'^#+ (.*)$', BLOCK.sub('', page.read_text()), re.MULTILINE)
    return {re.sub(r'[^\w -]', '', heading).lower().replace(' ', '-') for heading in headings}


@pages
def test_links_and_paths_exist(page):
    text = page.read_text()
    prose = INLINE.sub('', BLOCK.sub('', text))
    for link in re.findall(r'\]\(([^)\s]+)\)', prose):
        path, _, anchor = link.partition('#')
        if not link.startswith('https://'):
            target = page.parent / path if path else page
            assert target.exists(), link
            assert not anchor or anchor in anchors(target), link
    for path in PATH.findall(text):
        assert (ROOT / path).exists(), path


def test_the_citation_has_what_its_format_requires():
    """Of the Citation File Format 1.2.0; `cffconvert --validate` checks all of it."""
    citation = yaml.safe_load((ROOT / 'CITATION.cff').read_text())
    assert {'authors', 'cff-version', 'message', 'title'} <= set(citation)
    version = re.search(r'^version = "(.*)"', (ROOT / 'pyproject.toml').read_text(), re.MULTILINE)
    assert str(citation['version']) == version.group(1)


@cache
def flags(name: str, agent: str = 'fql') -> set[str]:
    """The flags of a command, such as 'inspect data'."""
    declared = COMMANDS[name][0]
    default = declared.defaults(['--agent', agent]) if hasattr(declared, 'defaults') else None
    actions = declared_actions(declared, default)
    short = {'--encoder'} if name == 'train' else set()
    return {'--help', *short, *(flag for action in actions for flag in action.option_strings)}


def commands(text: str) -> list[list[str]]:
    """The arguments of each `fql ...` on a page, in blocks and in its text."""
    blocks = [block.replace('\\\n', ' ') for block in BLOCK.findall(text)]
    lines = [line.strip() for block in blocks for line in block.splitlines()]
    lines += [' '.join(code.split()) for code in INLINE.findall(BLOCK.sub('', text))]
    return [shlex.split(line, comments=True)[1:] for line in lines if re.match('fql [a-z]', line)]


@pages
def test_commands_and_their_flags_exist(page):
    for arguments in commands(page.read_text()):
        (name,) = [name for name in COMMANDS if name.split() == arguments[: len(name.split())]]
        agent = value_of(arguments, '--agent')
        known = flags(name, agent if agent in AGENT_CONFIGS else 'fql')
        given = {argument.partition('=')[0] for argument in arguments if argument[:2] == '--'}
        assert given <= known, (arguments, given - known)


@pages
def test_commands_of_blocks_have_the_flags_that_are_required(page):
    """Those in the text name a command, and not all that it needs."""
    for block in BLOCK.findall(page.read_text()):
        for arguments in commands(block):
            (name,) = [name for name in COMMANDS if name.split() == arguments[: len(name.split())]]
            if name in ('train', 'pretrain') or '...' in arguments:
                continue  # They need --task or --dataset where they neither resume nor continue.
            for action in declared_actions(COMMANDS[name][0], None):
                if action.required and action.option_strings:
                    assert set(action.option_strings) & set(arguments), (arguments, action)


@pages
def test_flags_in_the_text_exist(page):
    known = {flag for name in COMMANDS for flag in flags(name)} | ELSEWHERE
    known |= {flag for agent in AGENT_CONFIGS for flag in flags('train', agent)}
    given = set(re.findall(r'(?<![\w-])--[a-z][\w.-]*\w', page.read_text()))
    assert given <= known, given - known


def test_the_pictures_of_results_are_drawn_from_their_csvs(tmp_path):
    docs = ROOT / 'docs'
    for path in (*docs.glob('*.csv'), docs / 'draw.py'):
        shutil.copy(path, tmp_path)
    (tmp_path / 'images').mkdir()
    subprocess.run([sys.executable, tmp_path / 'draw.py'], check=True)
    drawn = {path.name for path in (tmp_path / 'images').iterdir()}
    assert drawn == {'online-cube.png', 'steadiness.png'}
    assert all((docs / 'images' / name).exists() for name in drawn)
