"""nn.Modules. In: a module; out: the parts of the key for its class, attributes, parameters, buffers, submodules and hooks."""

from __future__ import annotations

from typing import Any

from torch.nn.modules import module as nn_module

from . import places
from .kinds import class_of
from .places import ATTRIBUTE, ITEM, Place
from .record import SCALAR, Record

_INTERNAL = frozenset({  # of an nn.Module: looked at elsewhere, or never by forward
    "_parameters", "_buffers", "_modules", "_non_persistent_buffers_set", "_backward_pre_hooks", "_backward_hooks",
    "_is_full_backward_hook", "_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs", "_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks", "_compiled_call_impl", "_flat_weight_refs",
})  # fmt: skip
_GROUPS = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
_HOOK_OPTIONS = ("_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks_with_kwargs")


class Modules(Record):
    """The handlers of nn.Modules."""

    def of_nn_module(self, module: Any, place: Place) -> None:
        if not self._first(module, place):
            return
        facts = class_of(type(module))
        key = self.key
        key.append("module")
        self._class(type(module), place)
        entries = object.__getattribute__(module, "__dict__")
        self.facts.append(("type", module, type(module)))
        self.facts.append(("dict", module, entries))
        self.mutable.append(("attributes", entries, None, place))
        if facts.named_only:
            self._watch(entries, module, place)
            training = entries.get("training")
            key.append("training")
            self.visit(training, (place, ATTRIBUTE, "training", entries, None))
        else:
            self.facts.append(("length", entries, len(entries)))
            facts_found = self.facts
            for name, item in entries.items():
                if name in _INTERNAL:
                    continue
                kind = type(item)
                if kind is int or kind is bool:  # nearly all of them
                    key += (name, kind, item)
                    facts_found.append((SCALAR, item, (place, ATTRIBUTE, name, entries, None)))
                else:
                    key.append(name)
                    self.visit(item, (place, ATTRIBUTE, name, entries, None))
        for group in _GROUPS:
            members = entries.get(group)
            if members is None:
                continue
            self.facts.append(("entry", entries, (group, members)))
            self.mutable.append(("attributes", members, None, place))
            if facts.named_only:
                self._watch(members, module, place)
                continue
            self.facts.append(("keys", members, tuple(members)))  # in their order, in which a container runs them
            key.append(len(members))
            for name, item in members.items():
                key.append(name)
                self.visit(item, (place, ATTRIBUTE, name, members, None))
        for group in _HOOKS:
            hooks = entries.get(group)
            if hooks is not None:
                self.facts.append(("entry", entries, (group, hooks)))
                self._hooks(hooks, entries, (place, ATTRIBUTE, group, entries, None))

    def _hooks(self, hooks: Any, module: Any, place: Place) -> None:
        """Hooks in their order; the numbers under which they are registered say nothing."""
        self.facts.append(("hooks", hooks, tuple(hooks.values())))
        if not hooks:
            return
        self.key += (place[2], len(hooks))
        for number, hook in hooks.items():
            self.key += tuple(number in module.get(option, ()) for option in _HOOK_OPTIONS)
            self.visit(hook, (place, ITEM, number, None, None))

    def _hooks_of_all_modules(self) -> None:
        for name in ("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks"):
            hooks = getattr(nn_module, name, None)
            if hooks is not None:
                self.facts.append(("entry", vars(nn_module), (name, hooks)))
                self._hooks(hooks, {}, (None, places.ROOT, f"torch.nn.modules.module.{name}", None, None))
