"""What can be known of CUDA without a GPU: fake tensors on "cuda", waits for the device, operators and bytes.

Fake tensors have shapes, strides, dtypes and devices but no data. Operators on fake "cuda" tensors choose dtypes and
layouts as on a GPU, also under autocast, with one exception: whether cuDNN has bfloat16 is asked of the GPU. Torch's
engine of backward passes needs a driver: :func:`backward` walks the graph in its place.
"""

import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_ROOT = Path(__file__).parents[2]
_HELPER = Path(__file__).name
# Operators that wait for the device: their shapes, or their results on the host, depend on data
_WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.unique_dim.default,
    aten.bincount.default,
    aten.repeat_interleave.Tensor,
    aten.equal.default,
}
_WITHOUT_WORK = ("aten::empty", "aten::new_empty", "aten::detach", "aten::_unsafe_view")
_READING = {"item", "tolist", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__", "__contains__"}


def fake(model: torch.nn.Module, mode: FakeTensorMode, device: str = "cuda") -> torch.nn.Module:
    """Replace a model's parameters and buffers by fake ones on a device. Call it inside `mode`."""
    with mode:
        for module in model.modules():
            for tensors in (module._parameters, module._buffers):
                for name, tensor in tensors.items():
                    if tensor is not None:
                        empty = torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device=device)
                        if isinstance(tensor, torch.nn.Parameter):
                            empty = torch.nn.Parameter(empty, requires_grad=tensor.requires_grad)
                        tensors[name] = empty
    return model


@contextmanager
def fake_autocast(dtype: torch.dtype | None) -> Iterator[None]:
    """CUDA's autocast, which `torch.autocast("cuda")` turns off without a GPU."""
    if dtype is None:
        yield
        return
    before = torch.is_autocast_enabled("cuda"), torch.get_autocast_dtype("cuda")
    torch.set_autocast_enabled("cuda", True)
    torch.set_autocast_dtype("cuda", dtype)
    torch.autocast_increment_nesting()
    try:
        yield
    finally:
        torch.set_autocast_enabled("cuda", before[0])
        torch.set_autocast_dtype("cuda", before[1])
        if torch.autocast_decrement_nesting() == 0:
            torch.clear_autocast_cache()


def backward(loss: torch.Tensor) -> None:
    """Compute gradients as `loss.backward()`, by calling the graph's nodes from Python, which needs no driver.

    Nodes are called as by torch's engine, the youngest first: `_sequence_nr` counts them as they are made.
    """
    waiting: dict[Any, dict[int, torch.Tensor]] = {loss.grad_fn: {0: torch.ones_like(loss)}}
    while waiting:
        node = max(waiting, key=lambda n: n._sequence_nr())
        given = waiting.pop(node)
        gradients = [given.get(place) for place in range(len(node._input_metadata))]
        if hasattr(node, "variable"):
            total = node.variable.grad
            node.variable.grad = gradients[0] if total is None else total + gradients[0]
            continue
        with torch.no_grad():
            results = getattr(node, "apply", node)(*gradients)  # functions in Python cannot be called themselves
            results = results if isinstance(results, tuple) else (results,)
            edges = node.next_functions
            if hasattr(node, "needs_input_grad"):  # those in Python, whose edges leave out what is not a tensor
                results = [g for g, needed in zip(results, node.needs_input_grad) if needed]
                edges = [edge for edge in edges if edge[0] is not None]
            for (target, place), gradient in zip(edges, results, strict=True):
                if target is not None and gradient is not None:
                    form = target._input_metadata[place]  # it may have been broadcast, or cast
                    gradient = gradient.sum_to_size(form.shape).to(form.dtype)
                    slots = waiting.setdefault(target, {})
                    slots[place] = slots[place] + gradient if place in slots else gradient


def _caller() -> str:
    """Name the innermost line of this repository outside this file."""
    frames = [frame for frame in traceback.extract_stack() if str(_ROOT) in frame.filename]
    frames = [frame for frame in frames if ".venv" not in frame.filename and not frame.filename.endswith(_HELPER)]
    return f"{Path(frames[-1].filename).name}: {frames[-1].line}" if frames else "?"


class WaitCounter(TorchDispatchMode):
    """Count what would wait for a GPU, by operator or method and by line.

    On fake tensors only those on "cuda" count; with `everywhere`, those on the CPU do too, as if they were on a GPU.
    """

    def __init__(self, everywhere: bool = False) -> None:
        super().__init__()
        self.everywhere = everywhere
        self.waits: Counter[tuple[str, str]] = Counter()
        self._patches = ExitStack()

    def __enter__(self) -> "WaitCounter":
        # reads by Python, which operators do not show for tensors on the CPU
        for name in _READING if self.everywhere else ():
            self._patches.enter_context(mock.patch.object(torch.Tensor, name, self._counted(name)))
        return super().__enter__()

    def __exit__(self, *exception: object) -> None:
        super().__exit__(*exception)
        self._patches.close()

    def _counted(self, name: str) -> Callable[..., Any]:
        read = getattr(torch.Tensor, name)

        def counted(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
            self.note(name)
            before = Counter(self.waits)
            try:
                return read(tensor, *args, **kwargs)
            finally:
                self.waits = before  # the operators of a read are not counted a second time

        return counted

    def note(self, name: str) -> None:
        self.waits[name, _caller()] += 1

    def counts(self, tensors: list[object]) -> bool:
        return any(isinstance(t, torch.Tensor) and (self.everywhere or t.device.type == "cuda") for t in tensors)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if self.counts(tree_leaves((args, kwargs))):
            indices = tree_leaves(args[1]) if func in (aten.index.Tensor, aten.index_put_.default) else []
            if func in _WAITING or any(getattr(index, "dtype", None) in (torch.bool, torch.uint8) for index in indices):
                self.note(str(func).removeprefix("aten."))
            if func is aten._to_copy.default and not kwargs.get("non_blocking"):
                self._note_copy(args[0].device, kwargs.get("device"))
            if func is aten.copy_.default and not (len(args) > 2 and args[2]):
                self._note_copy(args[1].device, args[0].device)
        return func(*args, **kwargs)

    def _note_copy(self, source: torch.device, target: torch.device | None) -> None:
        if target is not None and source.type != target.type:
            self.note(f"copy from {source.type} to {target.type}")


class OperatorCounter(TorchDispatchMode):
    """Counts the operators that write memory, and the bytes that they read and write, by name."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        name, written = func._schema.name, size_of(result)
        if (written or func._schema.is_mutable) and not func.is_view and not name.startswith(_WITHOUT_WORK):
            name = name.removeprefix("aten::")
            self.counts[name] += 1
            self.bytes[name] += written + size_of((args, kwargs))
        return result


def size_of(tree: object) -> int:
    """Bytes of all tensors in nested containers; what a stride of 0 repeats counts once."""
    total = 0
    for tensor in tree_leaves(tree):
        if isinstance(tensor, torch.Tensor):
            sides = [side for side, stride in zip(tensor.shape, tensor.stride()) if stride]
            total += torch.Size(sides).numel() * tensor.element_size()
    return total
