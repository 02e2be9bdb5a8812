"""Trees of arrays as lists of leaves: description, comparison and digest."""

import hashlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np


def describe_leaves(tree: Any) -> dict[str, str]:
    """'dtype shape' of every leaf, by its path."""
    return {
        jax.tree_util.keystr(path, simple=True, separator='/'): f'{leaf.dtype} {tuple(leaf.shape)}'
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
    }


def leaf_differences(saved: Mapping[str, str], expected: Mapping[str, str]) -> str:
    """How the leaves of one `describe_leaves` differ from another's; empty if they are equal."""
    differences = [
        f'{path}: saved {saved.get(path, "nothing")}, expected {expected.get(path, "nothing")}'
        for path in sorted(saved.keys() | expected.keys())
        if saved.get(path) != expected.get(path)
    ]
    return f'{len(differences)} leaves differ: {"; ".join(differences[:5])}' if differences else ''


def tree_digest(tree: Any) -> str:
    """Hexadecimal SHA-256 over path, dtype, shape and bytes of every leaf, in tree order."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        is_key = jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key)
        array = np.asarray(jax.random.key_data(leaf) if is_key else leaf)
        header = f'{jax.tree_util.keystr(path)} {leaf.dtype} {leaf.shape}\n'
        digest.update(header.encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
