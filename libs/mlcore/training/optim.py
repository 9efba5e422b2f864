"""Parameter groups, and optimisers and buffers whose change can be cancelled on the device.

The fused Adam, AdamW and SGD of torch read a `found_inf` tensor and leave parameters and moments alone where it is 1.
That lets the engine skip a non-finite step without waiting for the device.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlcore.base.errors import UserError


@dataclass(frozen=True)
class GroupRule:
    """Parameters whose name starts with `prefix` get their own learning rate.

    Attributes:
        prefix: Start of the parameter's full name, e.g. "encoder."; the longest matching prefix wins.
        lr: Learning rate; 0 freezes the parameters (they are left out of the optimiser).
    """

    prefix: str
    lr: float


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float = 0.0, rules: Sequence[GroupRule] = ()
) -> list[dict[str, Any]]:
    """Split trainable parameters by learning rate and by whether weight decay makes sense for them.

    Vectors and scalars (biases, gains of normalisation layers) are never decayed; matrices and larger are, unless the
    module that owns them is an embedding or names them in `no_weight_decay` (a set, or as in timm a method giving one).

    Returns:
        One dict for each non-empty combination, with keys params, lr, weight_decay and name; fewer groups are fewer
        kernel launches.

    Raises:
        UserError: A rule matches no parameter.
    """
    exempt = _exempt_from_decay(model)
    used: set[str] = set()
    groups: dict[tuple[str, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        matching = [rule for rule in rules if name.startswith(rule.prefix)]
        rule = max(matching, key=lambda r: len(r.prefix), default=GroupRule("", lr))
        used.add(rule.prefix)
        if rule.lr == 0.0:
            parameter.requires_grad = False
            continue
        # Without decay one group is enough.
        decays = weight_decay == 0.0 or (parameter.ndim >= 2 and name not in exempt)
        label = f"{rule.prefix.rstrip('.') or 'all'}/{'decay' if decays else 'no_decay'}"
        fresh = {"params": [], "lr": rule.lr, "weight_decay": weight_decay if decays else 0.0, "name": label}
        groups.setdefault((rule.prefix, decays), fresh)["params"].append(parameter)
    unused = [rule.prefix for rule in rules if rule.prefix not in used]
    if unused:
        raise UserError(f"parameter group rule(s) {unused} match no trainable parameter of {type(model).__name__}")
    return list(groups.values())


def _exempt_from_decay(model: nn.Module) -> set[str]:
    exempt: set[str] = set()
    for path, module in model.named_modules():
        named = getattr(module, "no_weight_decay", ())
        names: Iterable[str] = named() if callable(named) else named
        if isinstance(module, nn.Embedding):
            names = [*names, "weight"]
        exempt.update(f"{path}.{name}" if path else name for name in names)
    return exempt


def build_optimizer(
    groups: list[dict[str, Any]],
    *,
    name: Literal["adamw", "adam", "sgd"] = "adamw",
    momentum: float = 0.9,
) -> Optimizer:
    """Fused optimiser over `groups` (each with params, lr, weight_decay).

    Args:
        groups: From `parameter_groups`.
        name: adamw (arXiv 1711.05101), adam (decay added to the gradient), sgd.
        momentum: Momentum of SGD.

    Raises:
        UserError: Nothing is trainable, or the name is unknown.
    """
    if not any(group["params"] for group in groups):
        raise UserError("nothing to train: every parameter is frozen")
    if name == "adamw":
        return torch.optim.AdamW(groups, fused=True)
    if name == "adam":
        return torch.optim.Adam(groups, fused=True)
    if name != "sgd":
        raise UserError(f"unknown optimizer '{name}'; choose one of adam, adamw, sgd")
    optimizer = torch.optim.SGD(groups, lr=0.0, momentum=momentum, fused=True)
    _begin_momentum(optimizer)
    return optimizer


def _begin_momentum(optimizer: torch.optim.SGD) -> None:
    """Momentum of zeros where there is none.

    A skipped first step would leave torch's lazily made buffer uninitialised; zeros give the same first update.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"] if group["momentum"] else ():
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)


def take_over_moments(
    optimizer: Optimizer, saved: Mapping[str, Any], *, names: Sequence[str], saved_names: Sequence[str] | None
) -> bool:
    """Give each parameter the moments that a saved state has under its name; all settings stay the optimiser's own.

    Adam and AdamW keep the same moments. A parameter of which the saved state knows none, such as one that had no
    update yet, begins without.

    Args:
        optimizer: Its own moments are given up.
        saved: The `state_dict` of one.
        names: Names of the optimiser's parameters, in its order.
        saved_names: Those of the saved state; None where it has none: they are `names` where the groups are alike.

    Returns:
        Whether there was something to take over; not from another kind of optimiser.
    """
    fresh = optimizer.state_dict()
    if saved_names is None:
        sizes = [[len(group["params"]) for group in state["param_groups"]] for state in (saved, fresh)]
        saved_names = names if sizes[0] == sizes[1] else ()
    if _kind(saved) != _kind(fresh) or not saved_names:
        return False
    known = {name: saved["state"].get(place, {}) for place, name in enumerate(saved_names)}
    state = {k: known[name] for k, name in enumerate(names) if known.get(name)}
    optimizer.load_state_dict({"state": state, "param_groups": fresh["param_groups"]})
    if isinstance(optimizer, torch.optim.SGD):
        _begin_momentum(optimizer)
    _adopt_layouts(optimizer)
    return True


def _kind(state: Mapping[str, Any]) -> tuple[str, ...]:
    """What an optimiser with this state dict keeps moments for."""
    return tuple(key for key in ("betas", "momentum") if key in state["param_groups"][0])


@torch.no_grad()
def _adopt_layouts(optimizer: Optimizer) -> None:
    """Give the state of each parameter the parameter's strides again, which a file does not keep.

    Fused steps walk a parameter and its state through memory side by side: with other strides (`channels_last`) they
    would join the wrong elements, and say nothing.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


class Buffers:
    """A model's buffers (running statistics of batch norms, or their counts of batches) as one vector.

    Forward passes change them, so a step that is taken back and an average of the weights have to include them.

    Args:
        model: The bare model; buffers that are not in its state dict are left out.
        counts: Those that count (int64), in place of floating-point ones.
    """

    def __init__(self, model: nn.Module, *, counts: bool = False) -> None:
        saved = model.state_dict().keys()
        named = {
            name: buffer
            for name, buffer in model.named_buffers()
            if name in saved and (buffer.dtype == torch.int64 if counts else buffer.is_floating_point())
        }
        self.names = list(named)
        self._buffers = list(named.values())
        self._nothing = torch.empty(0)

    def read(self) -> Tensor:
        """Their values now, [N]; N is 0 for a model without any."""
        if not self._buffers:
            return self._nothing
        return torch.cat([buffer.flatten() for buffer in self._buffers])

    @torch.no_grad()
    def write(self, values: Tensor) -> None:
        """Give them the values [N]."""
        if self._buffers:
            torch._foreach_copy_(self._buffers, self.split(values))

    def split(self, values: Tensor) -> list[Tensor]:
        """Views of `values` [N], one for each buffer, in its shape."""
        parts = torch.split(values, [buffer.numel() for buffer in self._buffers]) if self._buffers else ()
        return [part.view_as(buffer) for part, buffer in zip(parts, self._buffers, strict=True)]
