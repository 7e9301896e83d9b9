"""Trees of leaves. In: nested dict, list, tuple and namedtuple; out: their leaves in a fixed order, or an error that says where two differ.

The rules are TensorFlow's: dict key order is immaterial, any mapping matches any mapping with the same keys, list and tuple
differ, a namedtuple matches only one of the same name and fields. None and ``torch.Size`` are leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.utils._pytree as pytree  # torch's own tree library; it has no public name in torch 2.11 to 2.13

Tree = Any
Structure = pytree.TreeSpec


def _is_size(node: Any) -> bool:
    return isinstance(node, torch.Size)  # a node to pytree since torch 2.13, one leaf to us


def flatten(tree: Tree) -> tuple[list[Any], Structure]:
    """The leaves of a tree and its structure."""
    if type(tree) is torch.Tensor:  # most trees are one tensor
        return [tree], _LEAF
    return pytree.tree_flatten(tree, is_leaf=_is_size)


_LEAF = pytree.tree_structure(0)


def unflatten(structure: Structure, leaves: list[Any]) -> Tree:
    """The tree of that structure with those leaves."""
    return pytree.tree_unflatten(leaves, structure)


def leaves(tree: Tree) -> list[Any]:
    """The leaves of a tree."""
    return flatten(tree)[0]


def map_leaves(function: Callable[..., Any], tree: Tree, *rest: Tree) -> Tree:
    """The tree of ``function(leaf, *leaves of the rest)``. Raises as `match` where a tree of the rest differs from the first."""
    first, structure = flatten(tree)
    others = [match(structure, other, "tree") for other in rest]
    return unflatten(structure, [function(*group) for group in zip(first, *others, strict=True)])


def paths(structure: Structure) -> list[str]:
    """The place of each leaf as Python would write it: ``[0]['h']``; the empty string for a tree that is one leaf."""
    if structure.is_leaf():
        return [""]
    tree = unflatten(structure, [0] * structure.num_leaves)
    return [pytree.keystr(path) for path, _ in pytree.tree_flatten_with_path(tree)[0]]


def match(structure: Structure, tree: Tree, name: str | Callable[[], str]) -> list[Any]:
    """The leaves of a tree that must have this structure; ``name``, or what it returns, stands for the tree in errors.

    Raises:
        TypeError: a node of another type (list for tuple, tuple for namedtuple).
        ValueError: another arity, other keys, or a node where a leaf belongs and the other way round.
    """
    try:
        return structure.flatten_up_to(tree)
    except ValueError:
        found: list[Any] = []
        _align(unflatten(structure, [0] * structure.num_leaves), tree, name if isinstance(name, str) else name(), found)
        return found


def _fields(node: Any) -> tuple[str, ...] | None:
    """The field names of a namedtuple, None for any other node."""
    return getattr(node, "_fields", None) if isinstance(node, tuple) else None


def _align(expected: Tree, tree: Tree, path: str, found: list[Any]) -> None:
    """Collect the leaves of ``tree`` in the order of ``expected``, or raise at the first place where they differ."""
    if isinstance(expected, Mapping):
        if not isinstance(tree, Mapping):
            raise _other_node(expected, tree, path)
        if set(expected) != set(tree):
            raise ValueError(f"{path}: expected the keys {_keys(expected)}, got {_keys(tree)}")
        pairs = [(expected[key], tree[key], f"{path}[{key!r}]") for key in expected]
    elif isinstance(expected, (list, tuple)) and not _is_size(expected):
        fields = _fields(expected)
        same_fields = fields is not None and (type(tree).__name__, _fields(tree)) == (type(expected).__name__, fields)
        if type(tree) is not type(expected) and not same_fields:
            raise _other_node(expected, tree, path)
        if len(expected) != len(tree):
            raise ValueError(f"{path}: expected a {type(expected).__name__} of {len(expected)}, got one of {len(tree)}: {describe(tree)}")
        steps = [f".{field}" for field in fields] if fields else [f"[{i}]" for i in range(len(expected))]
        pairs = [(e, t, path + step) for e, t, step in zip(expected, tree, steps, strict=True)]
    elif isinstance(expected, int):  # the placeholder of a leaf
        found.append(tree)
        return
    else:  # a node type that someone registered with pytree
        raise ValueError(f"{path}: expected a tree like {type(expected).__name__}, got {describe(tree)}")
    for pair in pairs:
        _align(*pair, found)


def _keys(mapping: Mapping[Any, Any]) -> str:
    return "{" + ", ".join(sorted(map(repr, mapping))) + "}"


def _other_node(expected: Tree, tree: Tree, path: str) -> Exception:
    node = isinstance(tree, (Mapping, list, tuple)) and not _is_size(tree)
    kind = TypeError if node else ValueError
    return kind(f"{path}: expected a {type(expected).__name__}, got {describe(tree)}")


def describe(tree: Tree) -> str:
    """A tree in one line for an error: tensors as ``float32[3, 5]``, nodes by their type."""
    if isinstance(tree, torch.Tensor):
        return f"{str(tree.dtype).removeprefix('torch.')}{list(tree.shape)}"
    if isinstance(tree, Mapping):
        return "{" + ", ".join(f"{key!r}: {describe(value)}" for key, value in tree.items()) + "}"
    if isinstance(tree, (list, tuple)) and not _is_size(tree):
        inside = ", ".join(map(describe, tree))
        if isinstance(tree, list):
            return f"[{inside}]"
        name = type(tree).__name__ if _fields(tree) else ""
        return f"{name}({inside}{',' if len(tree) == 1 and not name else ''})"
    if tree is None or isinstance(tree, (bool, int, float, torch.Size)):
        return repr(tree)
    return f"an object of type {type(tree).__name__}"
