"""Copies a state dict into a module with exact errors for mismatches; finds tensors that are not finite."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from runtime.errors import WeightsError

_LISTED = 6


def load_strict(
    module: nn.Module,
    tensors: Mapping[str, Tensor],
    *,
    source: str,
    hint: str = "",
    name_in_checkpoint: Callable[[str], str] = str,
) -> None:
    """Copy the tensors into the module; nothing is copied unless every one fits.

    Args:
        module: Takes the tensors. Missing ``num_batches_tracked`` counters are not an error: nothing that edgevis
            builds reads them.
        tensors: By name; dtypes are cast to the module's.
        source: What the tensors are, as the message's first words.
        hint: How to mend it, as the message's last sentence.
        name_in_checkpoint: From a name of ``module.state_dict()`` to the one among ``tensors``.

    Raises:
        WeightsError: Names or shapes differ, or a tensor is sparse, quantised, complex or without content (on device
            "meta"); the message names them with expected and found shapes. Or a tensor holds NaN or infinity, or a
            number beyond the range of the module's dtype.
    """
    state = module.state_dict()
    names = {name_in_checkpoint(name): name for name in state}
    expected = {name: state[name_in_module] for name, name_in_module in names.items()}
    missing = [
        f"{name} {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name not in tensors and not name.endswith("num_batches_tracked")
    ]
    unexpected = [f"{name} {tuple(tensor.shape)}" for name, tensor in tensors.items() if name not in expected]
    reshaped = [
        f"{name} is {tuple(tensors[name].shape)}, the model takes {tuple(tensor.shape)}"
        for name, tensor in expected.items()
        if name in tensors and tensors[name].shape != tensor.shape
    ]
    # Copying them would raise RuntimeError, or, of tensors on the device "meta", leave the module as it is.
    without_numbers = [
        f"{name} is {_kind(tensor)}" for name, tensor in tensors.items() if name in expected and _kind(tensor)
    ]
    problems = [
        f"{len(mismatched)} {what}: {'; '.join(mismatched[:_LISTED])}{' …' if len(mismatched) > _LISTED else ''}"
        for what, mismatched in (
            ("missing", missing),
            ("unexpected", unexpected),
            ("of another shape", reshaped),
            ("not plain numbers, save the model again with .to('cpu') and .to_dense()", without_numbers),
        )
        if mismatched
    ]
    if problems:
        end = f". {hint}" if hint else ""
        raise WeightsError(f"{source} does not fit {type(module).__name__}: tensors {'. '.join(problems)}{end}")
    cast = {name: tensor.to(expected[name].dtype) for name, tensor in tensors.items()}
    if said := non_finite(cast):
        raise WeightsError(f"{source}: {said}; take weights of a training that has not failed")
    module.load_state_dict({names[name]: tensor for name, tensor in cast.items()}, strict=False)


def non_finite(tensors: Mapping[str, Tensor]) -> str:
    """Which of the tensors hold NaN or infinity, in words that name the first one; empty where all are finite.

    Integers, and tensors without plain numbers (sparse, quantised, on the device "meta"), are not looked at. The
    tensors of one device cost one pass over their numbers and one synchronisation.
    """
    by_device: dict[torch.device, list[str]] = defaultdict(list)
    for name, tensor in tensors.items():
        plain = tensor.layout is torch.strided and not (tensor.is_meta or tensor.is_quantized)
        if plain and (tensor.is_floating_point() or tensor.is_complex()):
            by_device[tensor.device].append(name)
    bad: set[str] = set()
    for names in by_device.values():
        finite = torch.stack([_wide(tensors[name]).isfinite().all() for name in names]).tolist()
        bad |= {name for name, holds in zip(names, finite, strict=True) if not holds}
    first = next((name for name in tensors if name in bad), None)
    if first is None:
        return ""
    values = _wide(tensors[first])
    nans, numbers = int(values.isnan().sum()), int((~values.isfinite()).sum())
    kinds = " and ".join(kind for kind, count in (("NaN", nans), ("infinity", numbers - nans)) if count)
    more = len(bad) - 1
    others = f", and so {'does' if more == 1 else 'do'} {more} more of {len(tensors)} tensors" if more else ""
    return f"{first!r} holds {kinds} ({numbers} of {values.numel()} numbers){others}"


def _wide(tensor: Tensor) -> Tensor:
    """The tensor in a dtype that ``torch.isfinite`` supports: float8 is not among them."""
    return tensor.float() if tensor.is_floating_point() and tensor.itemsize == 1 else tensor


def _kind(tensor: Tensor) -> str:
    """A description of a tensor without plain numbers; empty for a plain tensor."""
    if tensor.is_meta:
        return "without content (on the device 'meta')"
    if tensor.layout is not torch.strided:
        return f"sparse ({tensor.layout})"
    if tensor.is_quantized:
        return f"quantised ({tensor.dtype})"
    return f"complex ({tensor.dtype})" if tensor.is_complex() else ""
