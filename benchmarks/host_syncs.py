"""Count, on a machine without an accelerator, where code would make the host wait for one.

The code runs for real on the CPU, and each tensor is known to be of the host or of the imagined device: of the host is
what a factory made without `device=`, what `.cpu()` returned, and what was computed of nothing but those; all else,
parameters and batches included, is of the device. What then waits is

    reading       item, bool, int, float, tolist, numpy, cpu, to("cpu") of a device tensor
    unknown size  nonzero, masked_select, unique, a boolean mask as an index: the host must learn how much comes out
    blocking copy torch.tensor(..., device=...), or `.to(device)` of a host tensor without non_blocking=True

as `torch.cuda.set_sync_debug_mode` has it. A factory with device="cpu" written out counts as the device's: rather one
too many than one too few. Not seen is what waits inside a kernel, and the optimiser's own steps, which are LeRobot's.
"""

from __future__ import annotations

import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_flatten
from torch.utils.weak import WeakIdKeyDictionary

aten = torch.ops.aten
UNKNOWN_SIZE = {
    aten.nonzero.default, aten.masked_select.default, aten._unique2.default, aten.unique_consecutive.default,
    aten.repeat_interleave.Tensor,
}  # fmt: skip
MASKED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
FROM_DATA = {torch.tensor, torch.as_tensor}


def tensors_of(*some) -> list[Tensor]:
    """All tensors in nested arguments."""
    return [leaf for leaf in tree_flatten(some)[0] if isinstance(leaf, Tensor)]


def names_device(value) -> bool:
    """Whether an argument of `Tensor.to` is a device, or a tensor whose device is meant."""
    return isinstance(value, str | torch.device | Tensor)


class HostSyncs:
    """Context in which the waits are counted: `waits` maps "kind at file:line" to a number."""

    def __init__(self) -> None:
        self.waits: Counter[str] = Counter()
        self._of_host = WeakIdKeyDictionary()
        self._modes = (_Calls(self), _Kernels(self))

    @property
    def total(self) -> int:
        """Number of waits."""
        return sum(self.waits.values())

    def __enter__(self) -> HostSyncs:
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error) -> None:
        for mode in reversed(self._modes):
            mode.__exit__(*error)

    def is_of_host(self, tensor: Tensor) -> bool:
        return tensor in self._of_host

    def mark(self, tensor: Tensor, is_of_host: bool) -> None:
        if is_of_host:
            self._of_host[tensor] = True
        else:
            self._of_host.pop(tensor, None)

    def count(self, kind: str) -> None:
        """Note a wait, and the innermost line outside of torch that caused it."""
        torch_folder = Path(torch.__file__).parent
        for frame in reversed(traceback.extract_stack()):
            path = Path(frame.filename)
            if path != Path(__file__) and torch_folder not in path.parents:
                self.waits[f"{kind} at {path.name}:{frame.lineno}"] += 1
                return
        self.waits[kind] += 1


class _Calls(TorchFunctionMode):
    """What is asked of torch in Python: copies between host and device, and on which side a factory makes a tensor."""

    def __init__(self, syncs: HostSyncs):
        super().__init__()
        self.syncs = syncs

    def __torch_function__(self, func: Callable, types, args=(), kwargs=None):
        syncs, kwargs = self.syncs, kwargs or {}
        name = getattr(func, "__name__", "")
        tensors = tensors_of(args, kwargs)
        if name in ("cpu", "tolist", "numpy", "__array__") and tensors and isinstance(args[0], Tensor):
            if not syncs.is_of_host(args[0]):
                syncs.count(name)
            result = func(*args, **kwargs)
            return self._copied(result, is_of_host=True) if isinstance(result, Tensor) else result
        if func is Tensor.to and any(names_device(value) for value in (*args[1:], *kwargs.values())):
            result = func(*args, **kwargs)
            if syncs.is_of_host(args[0]):
                if not kwargs.get("non_blocking"):
                    syncs.count("to(device)")
                return self._copied(result, is_of_host=False)
            if "cpu" in (*args[1:], *kwargs.values()):
                syncs.count('to("cpu")')
                return self._copied(result, is_of_host=True)
            return result
        result = func(*args, **kwargs)
        if func in FROM_DATA and kwargs.get("device") is not None and all(map(syncs.is_of_host, tensors)):
            syncs.count(f"{name}(device)")
            return self._copied(result, is_of_host=False)
        if not tensors and isinstance(result, Tensor) and func not in (torch.nn.Parameter,):
            syncs.mark(result, kwargs.get("device") is None)
        return result

    def _copied(self, tensor: Tensor, is_of_host: bool) -> Tensor:
        # On the CPU, `to` and `cpu` return the tensor itself, which stays on its own side.
        copy = tensor.clone()
        self.syncs.mark(copy, is_of_host)
        return copy


class _Kernels(TorchDispatchMode):
    """What reaches the kernels, from C++ and from autograd too: readings, sizes, and what comes out of host tensors."""

    def __init__(self, syncs: HostSyncs):
        super().__init__()
        self.syncs = syncs

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        syncs, kwargs = self.syncs, kwargs or {}
        tensors = tensors_of(args, kwargs)
        is_of_host = bool(tensors) and all(map(syncs.is_of_host, tensors))
        if not is_of_host:
            if func is aten._local_scalar_dense.default:
                syncs.count("item")
            elif func in UNKNOWN_SIZE and not (func is aten.repeat_interleave.Tensor and "output_size" in kwargs):
                syncs.count(func.overloadpacket.__name__)
            elif func in MASKED and any(index.dtype in (torch.bool, torch.uint8) for index in tensors_of(args[1])):
                syncs.count("boolean index")
        result = func(*args, **kwargs)
        if is_of_host:
            for tensor in tensors_of(result):
                syncs.mark(tensor, True)
        return result


def _read_in_backward(x: Tensor) -> None:
    y = x * 2
    y.register_hook(lambda grad: grad if grad.sum() > 0 else None)
    y.sum().backward()


def check() -> None:
    """Positive and negative control: every kind of wait is counted once, and what doesn't wait is not.

    Raises:
        RuntimeError: naming what was counted wrongly.
    """
    x = torch.linspace(-1, 1, 8).requires_grad_()
    here = x.device
    waiting: dict[str, Callable] = {
        "item": lambda: x.sum().item(),
        "bool": lambda: bool(x.sum() > 0),
        "int": lambda: int(x.sum()),
        "float": lambda: float(x.detach().sum()),
        "slice by a tensor": lambda: x[: torch.ones((), dtype=torch.int64, device=here)],
        "tolist": lambda: x.tolist(),
        "numpy": lambda: x.detach().numpy(),
        "cpu": lambda: x.cpu(),
        "to cpu": lambda: x.to("cpu"),
        "read in a backward hook": lambda: _read_in_backward(x),
        "nonzero": lambda: (x > 0).nonzero(),
        "where": lambda: torch.where(x > 0),
        "mask read": lambda: x[x > 0],
        "mask written": lambda: x.detach().clone().__setitem__(x > 0, 0.0),
        "masked_select": lambda: x.masked_select(x > 0),
        "unique": lambda: x.detach().unique(),
        "tensor from data": lambda: torch.tensor([1.0, 2.0], device=here),
        "blocking copy": lambda: torch.arange(3).to(here),
        "blocking copy of a result": lambda: (torch.arange(3) * 2).to(here),
    }  # fmt: skip
    still: dict[str, Callable] = {
        "compute": lambda: (x * 2).sum().backward(),
        "factory on the device": lambda: torch.zeros(3, device=here),
        "masked_fill": lambda: x.masked_fill(x > 0, 0.0),
        "where with values": lambda: torch.where(x > 0, x, 0.0),
        "index by numbers": lambda: x[torch.zeros(2, dtype=torch.int64, device=here)],
        "read on the host": lambda: bool((torch.arange(3) > 1).any()),
        "copy that doesn't block": lambda: torch.arange(3).to(here, non_blocking=True),
        "change of dtype": lambda: x.to(torch.float16),
    }
    for expected, cases in ((1, waiting), (0, still)):
        for name, case in cases.items():
            with HostSyncs() as syncs:
                case()
            if syncs.total != expected:
                raise RuntimeError(f"control {name!r}: {syncs.total} waits were counted, not {expected}: {syncs.waits}")
