"""Compile a kernel to a cubin for a GPU that need not be there, and read what the compiler says of it."""

import inspect
import os
import re
import subprocess
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

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


# (kernel, arch) -> one a variant, for the table at the end of the run
MEASURED: dict[tuple[str, int], list[Resources]] = {}


def summary() -> list[str]:
    """One line a kernel and architecture: the most that any of its variants takes."""
    lines = []
    for (kernel, arch), found in sorted(MEASURED.items()):
        most = {name: max(getattr(r, name) for r in found) for name in ("registers", "shared", "spills")}
        lines.append(
            f"sm_{arch} {kernel:<27} {len(found):2} compiled, at most {most['registers']:3} registers a thread, "
            f"{most['shared']:6} B shared, {most['spills']} B spilled"
        )
    return lines


def compile_kernel(kernel, arguments: dict, arch: int, num_warps: int, num_stages: int = 3) -> Resources:
    """Compile for sm_{arch}.

    arguments maps each kernel argument to "*bf16"-like types (pointers are taken as 16-byte aligned, which the
    allocator gives), to "i32*16" for integers divisible by 16, to "i32" or "fp32", or to the value of a constexpr.
    None stands for an argument that was passed as None.
    """
    names = list(inspect.signature(kernel.fn).parameters)
    annotations = {n: str(p.annotation) for n, p in inspect.signature(kernel.fn).parameters.items()}
    constants = {n: arguments[n] for n in names if "constexpr" in annotations[n] or arguments[n] is None}
    types = {n: arguments[n] for n in names if n not in constants}
    aligned = [i for i, n in enumerate(names) if n in types and (types[n][0] == "*" or types[n].endswith("*16"))]
    signature = {n: types[n].removesuffix("*16") if n in types else "constexpr" for n in names}
    source = _source(kernel, names, signature, constants, aligned)
    options = {"num_warps": num_warps, "num_stages": num_stages}
    with _assembler_reports() as reports:
        compiled = triton.compile(source, target=GPUTarget("cuda", arch, 32), options=options)
    (report,) = reports
    registers, spills = _usage(report)
    return Resources(registers, spills, compiled.metadata.shared, 32 * num_warps)


def _source(kernel, names: list[str], signature: dict, constants: dict, aligned: list[int]) -> ASTSource:
    if "constexprs" in inspect.signature(ASTSource.__init__).parameters:
        attributes = {(i,): [["tt.divisibility", 16]] for i in aligned}
        indexed = {(names.index(n),): value for n, value in constants.items()}
        return ASTSource(fn=kernel, signature=signature, constexprs=indexed, attrs=attributes)
    # Triton 3.2, which torch 2.6 brings
    from triton.backends.compiler import AttrsDescriptor

    properties = {"tt.divisibility": aligned, "tt.equal_to": []}
    attributes = AttrsDescriptor.from_dict({"arg_properties": properties, "cls": "AttrsDescriptor"})
    # an argument that is None keeps a place in the signature there, a constexpr does not
    typed = {n: t for n, t in signature.items() if t != "constexpr"}
    typed |= {n: "*i8" for n, value in constants.items() if value is None}
    return ASTSource(fn=kernel, signature=typed, constants=constants, attrs=attributes)


@contextmanager
def _assembler_reports():
    """List of what ptxas said in each of Triton's own runs of it.

    Which ptxas assembles for an architecture, and with which options, differs between releases of Triton: another run
    with other options would be about another cubin. Triton sends the report to a file that it deletes, and assembles
    nothing when it finds the cubin in its cache.
    """
    reports = []
    run = subprocess.run

    def run_and_read(command, **options):
        result = run(command, **options)
        if any(argument.startswith("--gpu-name") for argument in command):
            reports.append(Path(options["stderr"].name).read_text())
        return result

    with mock.patch.object(subprocess, "run", run_and_read), mock.patch.dict(os.environ, TRITON_ALWAYS_COMPILE="1"):
        yield reports


def _usage(report: str) -> tuple[int, int]:
    """Registers and spilled bytes in a report of ptxas; a stack frame counts as spilled."""
    registers = int(re.search(r"Used (\d+) registers", report).group(1))
    stack = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", report)
    return registers, max(int(n) for n in stack.groups())
