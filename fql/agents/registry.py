"""The agents by name."""

from fql.agents.base import Agent
from fql.agents.bc import BC
from fql.agents.configs import AgentConfig, Spec
from fql.agents.fawac import FAWAC
from fql.agents.fbrac import FBRAC
from fql.agents.fql import FQL
from fql.agents.ifql import IFQL
from fql.agents.iql import IQL
from fql.agents.qc import QC
from fql.agents.qc_fql import QCFQL
from fql.agents.rebrac import ReBRAC
from fql.agents.sac import SAC

AGENTS: dict[str, type[Agent]] = {
    'fql': FQL,
    'iql': IQL,
    'rebrac': ReBRAC,
    'ifql': IFQL,
    'fbrac': FBRAC,
    'fawac': FAWAC,
    'bc': BC,
    'sac': SAC,
    'qc_fql': QCFQL,
    'qc': QC,
}
"""Agents, by the name of their configuration."""


def make_agent(config: AgentConfig, spec: Spec) -> Agent:
    """The agent of these settings, for observations and actions of these shapes."""
    return AGENTS[config.name](config, spec)
