"""Triton kernels compiled for GPUs that are not there: registers and stack of a thread, and instructions in loops."""

import importlib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path

CAPABILITIES = (75, 80, 89, 90)  # T4, A100, RTX 40 and H100
_DUMPS = ("-res-usage", "-sass")  # of cuobjdump


@dataclass
class Kernel:
    """What a launch compiles.

    Attributes:
        module: Full name of the module.
        name: The kernel's name in it.
        capability: Compute capability, 90 for 9.0.
        types: Of the arguments that are not int32: "*bf16", "*fp32", "fp32", ...; or a list of them for a tuple.
            Pointers are divisible by 16.
        constants: Values of the arguments that are `tl.constexpr`.
        divisible: Names of the integers that are divisible by 16.
        options: Of the compiler, such as `num_warps`.
    """

    module: str
    name: str
    capability: int
    types: dict[str, str | list[str]]
    constants: dict[str, object]
    divisible: tuple[str, ...] = ()
    options: dict[str, int] = field(default_factory=lambda: {"num_warps": 4})


@dataclass
class Usage:
    """What a thread of a compiled kernel uses.

    Attributes:
        registers: At most 255.
        stack: Bytes of memory for what does not fit into registers.
        loops: Number of instructions of each innermost loop.
    """

    registers: int
    stack: int
    loops: list[int]


def compile_kernels(kernels: Iterable[Kernel]) -> list[Usage]:
    """Compile kernels in a process without Triton's interpreter."""
    env = {**os.environ, "TRITON_INTERPRET": "0", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    requests = json.dumps([asdict(kernel) for kernel in kernels])
    done = subprocess.run([sys.executable, __file__], input=requests, capture_output=True, text=True, env=env)
    assert done.returncode == 0, done.stderr[-4000:]
    return [Usage(**usage) for usage in json.loads(done.stdout)]


def _innermost_loops(instructions: str) -> list[int]:
    """Count instructions, of 16 bytes each, between the target of a jump backwards and the jump."""
    jumps = re.findall(r"/\*([0-9a-f]+)\*/.* BRA[^;]*0x([0-9a-f]+)", instructions)
    loops = [(int(target, 16), int(jump, 16)) for jump, target in jumps if int(target, 16) < int(jump, 16)]

    counts = []
    for first, last in loops:
        # one that holds another is not innermost; one that begins within another is a jump back from code after it
        if not any(first < a <= b <= last or a < first <= b < last for a, b in loops):
            counts.append((last - first) // 16 + 1)
    return counts


def _compile(kernel: Kernel) -> Usage:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.knobs import nvidia

    function = getattr(importlib.import_module(kernel.module), kernel.name)
    names = function.arg_names
    types = dict.fromkeys(names, "i32") | kernel.types | dict.fromkeys(kernel.constants, "constexpr")
    places = [(names.index(name),) for name in kernel.divisible]
    for name, kind in kernel.types.items():
        if isinstance(kind, list):
            types[name] = tuple(kind)
            places += [(names.index(name), i) for i in range(len(kind))]
        elif kind.startswith("*"):
            places.append((names.index(name),))
    source = ASTSource(
        fn=function,
        signature={name: types[name] for name in names},
        constexprs={(names.index(name),): value for name, value in kernel.constants.items()},
        attrs={place: [["tt.divisibility", 16]] for place in places},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", kernel.capability, 32), options=kernel.options)
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        Path(file.name).write_bytes(compiled.asm["cubin"])
        dumps = [subprocess.check_output([nvidia.cuobjdump.path, what, file.name], text=True) for what in _DUMPS]
    registers, stack = map(int, re.search(r"REG:(\d+) STACK:(\d+)", dumps[0]).groups())
    return Usage(registers, stack, _innermost_loops(dumps[1]))


if __name__ == "__main__":
    print(json.dumps([asdict(_compile(Kernel(**request))) for request in json.load(sys.stdin)]))
