"""An unpickler that executes no code: for checkpoints of PyTorch, Jittor and Paddle.

It restores plain values, and calls only functions of its own, each of which stands for a name in the pickle and checks
its arguments: constructors of torch and numpy can be made to read any memory. Objects are filled by it alone, too. What
the user has admitted for `torch.load` is admitted here.
"""

import _compat_pickle
import argparse
import math
import pickle
import types
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import IO, Any

import numpy as np
import torch


class ForbiddenError(pickle.UnpicklingError):
    """A pickle wants to do what could execute code; the message names it, as in "execute os.system"."""


class _Maker:
    """Stand-in for a class or a function that a pickle names: only the unpickler calls it, and nothing can change it.

    Attributes:
        name: The name in the pickle.
        make: What is called in its place; checks its arguments.
        makes_objects: Whether it stands for a class whose objects are made without arguments, and filled afterward.
    """

    __slots__ = ("make", "makes_objects", "name")

    def __init__(self, name: str, make: Callable[..., Any], makes_objects: bool = False) -> None:
        self.name, self.make, self.makes_objects = name, make, makes_objects


class _DType:
    """Stand-in for a `numpy.dtype`, whose own state in a pickle could describe memory that is not there."""

    def __init__(self, code: str, *args: Any) -> None:
        self.order = "="
        self.dtype = np.dtype(code) if isinstance(code, str) else np.dtype(object)
        if self.dtype.kind not in "biufcSU":
            raise ForbiddenError(f"make a numpy.dtype of {code}")


def _resolve(dtype: Any) -> np.dtype:
    """Return the type that a stand-in stands for."""
    if not isinstance(dtype, _DType):
        raise ForbiddenError(f"make an array of a {type(dtype).__name__}")
    return dtype.dtype.newbyteorder(dtype.order)  # type: ignore[arg-type]  # checked when it is set


class _HistoryBuffer:
    """Stand-in for the log of losses in mmengine's training checkpoints."""


def _encode(text: str, encoding: str) -> bytes:
    """Restore bytes in pickles of protocol 2; `codecs.encode` itself would accept any codec."""
    if encoding not in ("latin1", "latin-1"):
        raise pickle.UnpicklingError(f"bytes in the encoding {encoding}")
    return text.encode("latin1")


def _history_method(owner: Any, name: str) -> None:
    """Stand-in for `getattr`, with which that log refers to its own methods."""
    if not (isinstance(owner, _Maker) and owner.make is _HistoryBuffer):
        raise ForbiddenError("execute builtins.getattr")


def _jittor_var(array: Any) -> Any:
    """Stand-in for `jittor.Var`, which newer versions of Jittor pickle with its one array."""
    if not isinstance(array, np.ndarray):
        raise pickle.UnpicklingError(f"a jittor.Var of a {type(array).__name__}")
    return array


def _empty_array(*args: Any) -> np.ndarray:
    """An array that :func:`_fill_array` fills."""
    return np.empty(0, np.int8)


def _fill_array(array: np.ndarray, state: Any) -> None:
    _, shape, dtype, fortran, data = state
    resolved = _resolve(dtype)
    if len(data) != math.prod(shape) * resolved.itemsize or min(shape, default=0) < 0:
        raise pickle.UnpicklingError("an array of another size than its data")
    array.__setstate__((1, tuple(shape), resolved, bool(fortran), bytes(data)))  # type: ignore[arg-type]


def _array_of_buffer(data: Any, dtype: Any, shape: Any, order: str) -> np.ndarray:
    return np.frombuffer(bytes(data), _resolve(dtype)).reshape(shape, order="F" if order == "F" else "C")


def _scalar(dtype: Any, data: bytes) -> Any:
    return np.frombuffer(bytes(data), _resolve(dtype))[0]


def _tensor(storage: Any, offset: int, size: Any, stride: Any, *others: Any) -> torch.Tensor:
    """Restore a tensor, as `torch._utils._rebuild_tensor_v2` and `_v3` do; without hooks and without gradient."""
    if not isinstance(storage, torch.storage.TypedStorage):
        raise ForbiddenError(f"make a tensor of a {type(storage).__name__}")
    dtype = next((other for other in others if isinstance(other, torch.dtype)), None)
    tensor = torch.empty(0, dtype=dtype or storage.dtype)
    return tensor.set_(storage._untyped_storage, offset, tuple(size), tuple(stride))


def _parameter(data: torch.Tensor, requires_grad: bool, hooks: Any) -> torch.nn.Parameter:
    return torch.nn.Parameter(data, bool(requires_grad))


def _admitted_globals() -> dict[str, Any]:
    """Build the table of names that a pickle may use, and what stands for each."""
    functions: dict[str, Callable[..., Any]] = {
        "_codecs.encode": _encode,
        "builtins.bytearray": bytearray,
        "builtins.complex": complex,
        "builtins.getattr": _history_method,
        "builtins.set": set,
        "collections.Counter": Counter,
        "collections.OrderedDict": OrderedDict,
        "jittor.Var": _jittor_var,
        "jittor_core.Var": _jittor_var,
        "numpy.dtype": _DType,
        "numpy.ndarray": _empty_array,
        "torch.Size": torch.Size,
        "torch._utils._rebuild_parameter": _parameter,
        "torch._utils._rebuild_tensor": _tensor,
        "torch._utils._rebuild_tensor_v2": _tensor,
        "torch._utils._rebuild_tensor_v3": _tensor,
        "torch.device": torch.device,
        "torch.serialization._get_layout": torch.serialization._get_layout,
    }
    for core in ("core", "_core"):  # of numpy before and since version 2
        functions[f"numpy.{core}.multiarray._reconstruct"] = _empty_array
        functions[f"numpy.{core}.multiarray.scalar"] = _scalar
        functions[f"numpy.{core}.numeric._frombuffer"] = _array_of_buffer
    classes = {
        "argparse.Namespace": argparse.Namespace,  # the arguments of timm's training script
        "mmengine.logging.history_buffer.HistoryBuffer": _HistoryBuffer,
    }
    dtypes: dict[str, Any] = {str(value): value for value in vars(torch).values() if isinstance(value, torch.dtype)}
    makers = {name: _Maker(name, make) for name, make in functions.items()}
    dtypes["torch.storage.UntypedStorage"] = torch.UntypedStorage  # to compare with
    return dtypes | makers | {name: _Maker(name, make, makes_objects=True) for name, make in classes.items()}


_ADMITTED = _admitted_globals()


def _admitted_by_user() -> dict[str, Any]:
    """What the user has admitted for `torch.load`, by name."""
    entries = torch.serialization.get_safe_globals()
    named = (e if isinstance(e, tuple) else (e, f"{e.__module__}.{e.__qualname__}") for e in entries)
    return {name: value for value, name in named}


def _describe(value: Any) -> str:
    """Name of an object, for messages."""
    owner = value if isinstance(value, type) else type(value)
    return value.name if isinstance(value, _Maker) else f"{owner.__module__}.{owner.__qualname__}"


_Base: Any = pickle._Unpickler  # unlike pickle.Unpickler, it lets single steps be replaced
# Steps that make and fill plain values; others can call constructors with arguments of their own
_PLAIN_STEPS = """
    PROTO FRAME STOP MARK POP POP_MARK DUP NONE NEWTRUE NEWFALSE INT BININT BININT1 BININT2 LONG LONG1 LONG4 FLOAT
    BINFLOAT STRING BINSTRING SHORT_BINSTRING UNICODE BINUNICODE SHORT_BINUNICODE BINUNICODE8 BINBYTES
    SHORT_BINBYTES BINBYTES8 BYTEARRAY8 TUPLE TUPLE1 TUPLE2 TUPLE3 EMPTY_TUPLE LIST EMPTY_LIST APPEND APPENDS DICT
    EMPTY_DICT SETITEM SETITEMS EMPTY_SET ADDITEMS FROZENSET GET BINGET LONG_BINGET PUT BINPUT LONG_BINPUT MEMOIZE
    GLOBAL STACK_GLOBAL
"""


class _Unpickler(_Base):
    """Unpickler that calls and fills only what the table, or the user, admits."""

    def find_class(self, module: str, name: str) -> Any:
        # names of Python 2, which torch.save writes
        moved = _compat_pickle.IMPORT_MAPPING.get(module, module), name
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), moved)
        full = f"{module}.{name}"
        if full in _ADMITTED:
            return _ADMITTED[full]
        by_user = _admitted_by_user() if module not in ("os", "posix", "nt", "sys") else {}  # as torch.load
        if full not in by_user:
            raise ForbiddenError(f"execute {full}")
        return by_user[full]

    def _is_users(self, value: Any) -> bool:
        return any(value is admitted for admitted in _admitted_by_user().values())

    def load_reduce(self) -> None:
        """Call a function."""
        args, function = self.stack.pop(), self.stack.pop()
        if isinstance(function, _Maker):
            self.append(function.make(*args))
        elif self._is_users(function):
            self.append(function(*args))
        else:
            raise ForbiddenError(f"execute {_describe(function)}")

    def load_newobj(self) -> None:
        """Make an object of a class."""
        args, cls = self.stack.pop(), self.stack.pop()
        if isinstance(cls, _Maker) and cls.makes_objects and not args:
            self.append(cls.make())
        elif self._is_users(cls):
            self.append(cls.__new__(cls, *args))
        else:
            raise ForbiddenError(f"execute {_describe(cls)}")

    def load_build(self) -> None:
        """Fill an object with its state."""
        state, target = self.stack[-1], self.stack[-2]
        if self._is_users(type(target)):
            return super().load_build()
        self.stack.pop()
        if type(target) is np.ndarray:
            _fill_array(target, state)
        elif type(target) is _DType and state[1] in ("<", ">", "|", "=") and not any(state[2:5]):
            target.order = state[1]
        elif type(target) is argparse.Namespace and isinstance(state, dict):
            vars(target).update(state)
        elif type(target) is OrderedDict and isinstance(state, dict):  # modules' versions, in torch's state dicts
            target._metadata = state.get("_metadata")  # type: ignore[attr-defined]
        elif type(target) is not _HistoryBuffer:
            raise ForbiddenError(f"change {_describe(target)}")

    def load_binpersid(self) -> None:
        """Find a storage; for a module, torch would compare its source code, and write differences to a file."""
        if self.stack[-1][:1] != ("storage",):
            raise ForbiddenError("compare source code")
        super().load_binpersid()

    dispatch = {code[0]: _Base.dispatch[code[0]] for code in (getattr(pickle, name) for name in _PLAIN_STEPS.split())}
    dispatch |= {
        pickle.REDUCE[0]: load_reduce,
        pickle.NEWOBJ[0]: load_newobj,
        pickle.BUILD[0]: load_build,
        pickle.BINPERSID[0]: load_binpersid,
    }


def load_pickle(file: IO[bytes], **options: Any) -> Any:
    """Read a pickle without executing code from it.

    Raises:
        ForbiddenError: If it would execute code.
    """
    return _Unpickler(file, **options).load()


# what torch.load takes for a module like `pickle`
PICKLE_MODULE = types.SimpleNamespace(__name__=__name__, Unpickler=_Unpickler, load=load_pickle)
