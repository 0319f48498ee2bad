"""A GPU without a GPU: tensors that say they are on the device `gpu`, and compute on the CPU.

An operation that mixes devices is an error, as on a GPU. What makes the host wait for the device is listed in
`PretendGpu.waits` with the place in `dlm` that asked for it. For a process of its own: torch knows the device from the
import of this module on.
"""

import sys

import torch
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map_only
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

_setup_privateuseone_for_python_backend("gpu")
GPU, CPU = torch.device("gpu:0"), torch.device("cpu")
aten = torch.ops.aten
# Their result depends on values in its shape, or is a number on the host.
WAITS = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten.equal.default,
    aten._unique2.default,
    aten.repeat_interleave.Tensor,
}
COPIES = {aten._to_copy.default, aten.copy_.default}  # which may have one tensor on each device


class OnGpu(torch.Tensor):
    """A tensor on the pretended device; `inner` holds its values."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(
            cls,
            inner.shape,
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            device=GPU,
            requires_grad=inner.requires_grad,
        )

    def __init__(self, inner):
        self.inner = inner

    def tolist(self):  # torch refuses it for subclasses
        return self.cpu().tolist()

    def __repr__(self, **kwargs):
        return f"OnGpu({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        with PretendGpu():  # outside of the mode: a gradient that is printed, a parameter that is made
            return func(*args, **(kwargs or {}))


class PretendGpu(TorchDispatchMode):
    """A context in which `device="gpu"` gives tensors on the pretended device."""

    def __init__(self):
        super().__init__()
        self.waits: list[str] = []

    def __enter__(self):
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device=) makes a CPU tensor and moves it
        return super().__enter__()

    def __exit__(self, *error):
        torch._C._set_only_lift_cpu_tensors(False)
        return super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        tensors = [t for t in tree_flatten((args, kwargs))[0] if isinstance(t, torch.Tensor)]
        on_gpu = [t for t in tensors if isinstance(t, OnGpu)]
        asked = kwargs.get("device")
        if asked is not None:
            kwargs["device"] = CPU
        if on_gpu and func not in COPIES:
            mixed = [t for t in tensors if not isinstance(t, OnGpu) and t.ndim]  # a number may be on the host
            assert not mixed, f"{func} mixes devices, at {place()}: {[tuple(t.shape) for t in mixed]}"
        if func is aten._fused_sdp_choice.default:
            return 0  # the one that is made of other operations
        to_host = asked is not None and torch.device(asked).type == "cpu"
        if on_gpu and (func in WAITS or to_host or indexes_by_mask(func, args)):
            self.waits.append(place())
        out = func(*tree_map_only(OnGpu, inner_of, args), **tree_map_only(OnGpu, inner_of, kwargs))
        wraps = torch.device(asked).type == "gpu" if asked is not None else bool(on_gpu)
        if func is aten.copy_.default:
            return args[0]
        if not wraps:
            return out
        out = tree_map_only(torch.Tensor, lambda t: t if isinstance(t, OnGpu) else OnGpu(t), out)
        return return_and_correct_aliasing(func, args, kwargs, out) if on_gpu else out


def inner_of(tensor: OnGpu) -> torch.Tensor:
    return tensor.inner


def indexes_by_mask(func, args) -> bool:
    """Whether an index is a mask, of which the host must know how many are set."""
    is_index = func in (aten.index.Tensor, aten.index_put_.default, aten.index_put.default)
    masks = [i for i in args[1] if i is not None and i.dtype in (torch.bool, torch.uint8)] if is_index else []
    return bool(masks)


def place() -> str:
    """The innermost function of the product that is running."""
    frame = sys._getframe()
    while frame is not None:
        if "/dlm/" in frame.f_code.co_filename:
            return f"{frame.f_code.co_filename.rsplit('/dlm/')[-1]}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "?"
