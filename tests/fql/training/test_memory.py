"""The limits of the machine that a run is compared with."""

import resource

import pytest

from fql.errors import FQLError
from fql.training.resource_limits import MOST_OPEN_FILES, check_open_files


@pytest.fixture
def limits(monkeypatch):
    """limits(soft, hard): what the system says; returns the limit that was set."""
    changed = []

    def give(soft, hard):
        monkeypatch.setattr(resource, 'getrlimit', lambda kind: (soft, hard))
        monkeypatch.setattr(resource, 'setrlimit', lambda kind, pair: changed.append(pair))
        return changed

    return give


def test_a_limit_of_open_files_that_can_be_raised_is_raised(limits):
    changed = limits(64, 4096)
    check_open_files()
    assert changed == [(4096, 4096)]
    for soft in (4096, resource.RLIM_INFINITY):
        limits(soft, soft)
        check_open_files()
    assert len(changed) == 1
    limits(1024, resource.RLIM_INFINITY)
    check_open_files()
    assert changed[1:] == [(MOST_OPEN_FILES, resource.RLIM_INFINITY)]


def test_too_few_open_files_are_refused(limits):
    limits(32, 32)
    with pytest.raises(FQLError, match='only 32 files may be open at once'):
        check_open_files()
