"""Flow Q-Learning (Park, Li, Levine, ICML 2025): the algorithm, training, and trained policies."""

from typing import TYPE_CHECKING, Any

__all__ = ['LoadedPolicy', 'load_policy']

if TYPE_CHECKING:
    from fql.policies.loaded_policy import LoadedPolicy, load_policy
else:  # A type checker would take any name for one of the package.

    def __getattr__(name: str) -> Any:
        """Import a public name on its first use: light modules of this package must stay light."""
        if name in __all__:
            from fql.policies import loaded_policy

            return getattr(loaded_policy, name)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
