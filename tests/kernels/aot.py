"""Compile a kernel to a cubin for a GPU that need not be there, and read what the compiler says of it."""

import inspect
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@dataclass
class Resources:
    """Registers a thread, spill bytes and shared-memory bytes a program, threads a program."""

    registers: int
    spills: int
    shared: int
    threads: int


def compile_kernel(kernel, arguments: dict, arch: int, num_warps: int, num_stages: int = 3) -> Resources:
    """Compile for sm_{arch}.

    arguments maps each kernel argument to "*bf16"-like types (pointers are taken as 16-byte aligned, which the
    allocator gives), to "i32*16" for integers divisible by 16, to "i32" or "fp32", or to the value of a constexpr.
    None stands for an argument that was passed as None.
    """
    constants = {}
    signature = {}
    aligned = []
    for i, (name, parameter) in enumerate(inspect.signature(kernel.fn).parameters.items()):
        value = arguments[name]
        if "constexpr" in str(parameter.annotation) or value is None:
            constants[(i,)] = value
            signature[name] = "constexpr"
            continue
        signature[name] = value.removesuffix("*16")
        if value.endswith("*16") or value.startswith("*"):
            aligned.append(i)
    source = ASTSource(
        fn=kernel, signature=signature, constexprs=constants, attrs={(i,): [["tt.divisibility", 16]] for i in aligned}
    )
    options = {"num_warps": num_warps, "num_stages": num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    registers, spills = _assemble(compiled.asm["ptx"], arch)
    return Resources(registers, spills, compiled.metadata.shared, 32 * num_warps)


def _assemble(ptx: str, arch: int) -> tuple[int, int]:
    """Registers and spilled bytes as ptxas reports them; a stack frame counts as spilled."""
    ptxas = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "ptxas"
    suffix = "a" if arch == 90 else ""
    command = [str(ptxas), "-v", f"-arch=sm_{arch}{suffix}", "-o", "/dev/null", "-"]
    report = subprocess.run(command, input=ptx, capture_output=True, text=True, check=True).stderr
    registers = int(re.search(r"Used (\d+) registers", report).group(1))
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    return registers, max(int(n) for n in stack.groups())
