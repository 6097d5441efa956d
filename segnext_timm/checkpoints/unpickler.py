"""An unpickler that executes no code: for checkpoints of PyTorch, Jittor and Paddle.

It restores plain values, arrays and tensors. What a pickle names is never called itself, but a function here that
checks its arguments: constructors of torch and numpy can be made to read any memory. `torch.load` takes this module in
place of `pickle`.
"""

import _compat_pickle
import argparse
import math
import pickle
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
import torch


class ForbiddenError(pickle.UnpicklingError):
    """A pickle wants to do what could execute code; the message names it, as in "execute os.system"."""


@dataclass(frozen=True, slots=True)
class _StandIn:
    """Stand-in for a class or a function that a pickle names: only the unpickler calls it."""

    name: str
    make: Callable[..., Any]


class _DType:
    """Stand-in for a `numpy.dtype`, whose own state in a pickle could describe memory that is not there."""

    def __init__(self, code: Any, *args: Any) -> None:
        if not (isinstance(code, str) and np.dtype(code).kind in "biufcSU"):
            raise ForbiddenError(f"make a numpy.dtype of {code}")
        self.dtype = np.dtype(code)

    def set_order(self, state: Any) -> None:
        """Set the byte order, which is all that the state of a plain type says."""
        if state[1] not in ("<", ">", "|", "=") or any(state[2:5]):
            raise ForbiddenError("change numpy.dtype")
        self.dtype = self.dtype.newbyteorder(state[1])


def _resolve(dtype: Any) -> np.dtype:
    if not isinstance(dtype, _DType):
        raise ForbiddenError(f"make an array of a {type(dtype).__name__}")
    return dtype.dtype


def _history_method(owner: Any, name: str) -> None:
    """Stand-in for `getattr`, with which mmengine's log of losses refers to its own methods."""
    if not (isinstance(owner, _StandIn) and owner.name == _HISTORY):
        raise ForbiddenError("execute builtins.getattr")


def _encode(text: str, encoding: str) -> bytes:
    """Restore bytes in pickles of protocol 2; `codecs.encode` itself would accept any codec."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


def _fill_array(array: np.ndarray, state: Any) -> None:
    _, shape, dtype, fortran, data = state
    resolved = _resolve(dtype)
    if len(data) != math.prod(shape) * resolved.itemsize or min(shape, default=0) < 0:
        raise pickle.UnpicklingError("an array of another size than its data")
    array.__setstate__((1, tuple(shape), resolved, bool(fortran), bytes(data)))  # type: ignore[arg-type]


def _array_of_buffer(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    return np.frombuffer(bytes(data), _resolve(dtype)).reshape(shape, order="F" if order == "F" else "C")


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *others: Any) -> torch.Tensor:
    """Restore a tensor, as `torch._utils._rebuild_tensor_v2` and `_v3` do; without hooks and without gradient."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise ForbiddenError(f"make a tensor of a {type(storage).__name__}")
    dtype = next((other for other in others if isinstance(other, torch.dtype)), None)
    tensor = torch.empty(0, dtype=dtype or storage.dtype)
    return tensor.set_(storage._untyped_storage, offset, tuple(size), tuple(stride))


_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "_codecs.encode": _encode,
    "builtins.bytearray": bytearray,
    "builtins.complex": complex,
    "builtins.getattr": _history_method,
    "builtins.set": set,
    "collections.Counter": Counter,
    "collections.OrderedDict": OrderedDict,
    "jittor.Var": lambda array: array,  # as newer versions of Jittor write
    "jittor_core.Var": lambda array: array,
    "numpy.dtype": _DType,
    "numpy.ndarray": lambda *args: np.empty(0),
    "torch.Size": torch.Size,
    "torch._utils._rebuild_parameter": lambda data, grad, hooks: torch.nn.Parameter(data, bool(grad)),
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_tensor_v3": _tensor,
    "torch.device": torch.device,
    "torch.serialization._get_layout": torch.serialization._get_layout,
}
for _core in ("numpy.core", "numpy._core"):  # before and since numpy 2
    _FUNCTIONS[f"{_core}.multiarray._reconstruct"] = lambda *args: np.empty(0)  # its state follows
    _FUNCTIONS[f"{_core}.multiarray.scalar"] = lambda dtype, data: np.frombuffer(bytes(data), _resolve(dtype))[0]
    _FUNCTIONS[f"{_core}.numeric._frombuffer"] = _array_of_buffer
_HISTORY = "mmengine.logging.history_buffer.HistoryBuffer"
# Classes whose objects are made without arguments, and stay empty: the arguments of timm's train.py, mmengine's log
_CLASSES: dict[str, Callable[..., Any]] = {"argparse.Namespace": argparse.Namespace, _HISTORY: argparse.Namespace}
_ADMITTED: dict[str, Any] = {
    **{str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)},
    "torch.storage.UntypedStorage": torch.UntypedStorage,  # torch compares it, and nothing here makes one
    **{name: _StandIn(name, make) for name, make in (_FUNCTIONS | _CLASSES).items()},
}


_FILL: dict[type, Callable[[Any, Any], None]] = {np.ndarray: _fill_array, _DType: _DType.set_order}
_STAY_EMPTY = (OrderedDict, argparse.Namespace)  # objects whose state is no weights


def _describe(value: Any) -> str:
    return value.name if isinstance(value, _StandIn) else type(value).__name__


_Base: Any = pickle._Unpickler  # unlike pickle.Unpickler, it lets single steps be replaced
# Steps that call classes in other ways, which no checkpoint has
_OTHER_CALLS = pickle.INST + pickle.OBJ + pickle.NEWOBJ_EX + pickle.EXT1 + pickle.EXT2 + pickle.EXT4


class Unpickler(_Base):
    """Unpickler that calls and fills only what the tables admit."""

    def find_class(self, module: str, name: str) -> Any:
        """Look up what stands for a class or a function."""
        # names of Python 2, which torch.save writes
        moved = _compat_pickle.IMPORT_MAPPING.get(module, module), name
        full = ".".join(_compat_pickle.NAME_MAPPING.get((module, name), moved))
        if full not in _ADMITTED:
            raise ForbiddenError(f"execute {full}")
        return _ADMITTED[full]

    def load_reduce(self) -> None:
        """Call a function."""
        args, function = self.stack.pop(), self.stack.pop()
        if not isinstance(function, _StandIn):
            raise ForbiddenError(f"execute {_describe(function)}")
        self.append(function.make(*args))

    def load_newobj(self) -> None:
        """Make an object of a class."""
        args, cls = self.stack.pop(), self.stack.pop()
        if not (isinstance(cls, _StandIn) and cls.name in _CLASSES and not args):
            raise ForbiddenError(f"execute {_describe(cls)}")
        self.append(cls.make())

    def load_build(self) -> None:
        """Fill an object with its state."""
        state, target = self.stack.pop(), self.stack[-1]
        if type(target) in _FILL:
            _FILL[type(target)](target, state)
        elif type(target) not in _STAY_EMPTY:
            raise ForbiddenError(f"change {_describe(target)}")

    dispatch = {code: step for code, step in _Base.dispatch.items() if code not in _OTHER_CALLS} | {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
    }


def load(file: IO[bytes], **options: Any) -> Any:
    """Read a pickle without executing code from it; raises a ForbiddenError if it would."""
    return Unpickler(file, **options).load()
