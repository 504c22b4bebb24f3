"""What the compiled kernels take of a device and which instructions they have, against what they may and must. Part of cuda.py.

resources.tsv has a line a kernel and image: threads a block, bytes of static shared memory, and for every architecture
registers/blocks/occupancy: registers a thread, the most blocks that an SM holds with no dynamic shared memory, and its threads then in
percent of the most. The file is the review of occupancy: a kernel that comes to take more shows in it as a changed line.
"""

import re
from collections import namedtuple

# Of one SM (CUDA C++ Programming Guide, technical specifications per compute capability): threads, blocks, KiB of shared memory.
Sm = namedtuple("Sm", "threads blocks shared_kib")
SM = {
    80: Sm(2048, 32, 164),
    86: Sm(1536, 16, 100),
    87: Sm(1536, 16, 164),
    89: Sm(1536, 24, 100),
    90: Sm(2048, 32, 228),
    100: Sm(2048, 32, 228),
    110: Sm(1536, 24, 228),
    120: Sm(1536, 24, 100),
    121: Sm(1536, 24, 100),
}
REGISTERS = 65536
# Registers are given to a warp in steps of 256, out of the quarter of the SM that it runs on; shared memory to a block in steps of 128
# bytes, with 1 KiB for the system, which the compiler counts as the kernel's from sm_90 on.
REGISTER_STEP = 256
SHARED_STEP = 128
SYSTEM_SHARED = 1024

# The instructions that kernels were written for: pattern of a kernel's name, instruction, the reason. A pattern that names no kernel is
# a mistake in this list.
GLOBAL_16 = r"LDG\.E\S*\.128"
COPY_16 = r"LDGSTS\S*\.128"
SHARED_16 = r"LDS\S*\.128"
MUST_HAVE = [
    (r"gemm_(f16|bf16|q8|q4)_\w+", r"HMMA\.16816\.F32", "the product is not on tensor cores"),
    (r"gemm_(f16|bf16)_\w+", r"LDSM\.16\.\S*4", "fragments are not read by ldmatrix"),
    (r"gemm_tf32_\w+", r"HMMA\.1688\.F32\.TF32", "the product is not on tensor cores"),
    (r"gemm_(q8|q4)_\w+", SHARED_16, "activations are not read from shared memory 16 bytes at a time"),
    (r"gemm_(f16|bf16|tf32|q8|q4)_\w+", COPY_16, "tiles are not copied 16 bytes at a time past the registers"),
    (r"gemm_f32_\w+|attention_(prefill|dq)_\w+|attention_dkv", GLOBAL_16, "tiles are not read 16 bytes at a time"),
    (r"gemm_f32_\w+|attention_(prefill|dq)_\w+|attention_dkv", SHARED_16, "shared memory is not read 16 bytes at a time"),
    (r"gemv_\w+|attention_decode", GLOBAL_16, "the weights or keys, which bound it, are not read 16 bytes at a time"),
    (r"activate_\w+|norm_(warp|block)|add|add_bias|adamw", GLOBAL_16, "numbers are not read 16 bytes at a time"),
]

Usage = namedtuple("Usage", "threads shared registers stack local")


class Failure(Exception):
    """A sentence for the user."""


def usage(resource_usage, ptx):
    """{(kernel, architecture): Usage} from what cuobjdump prints."""
    threads = {}
    for name, bound in re.findall(r"\.entry (\w+)\([^)]*\)\s*\.maxntid (\d+), 1, 1", ptx):
        threads[name] = int(bound)
    found, architecture = {}, None
    name = None
    for line in resource_usage.splitlines():
        if match := re.match(r"arch = sm_(\d+)", line):
            architecture = int(match[1])
        elif match := re.match(r"\s*Function (\w+):", line):
            name = match[1]
        elif match := re.match(r"\s*REG:(\d+) STACK:(\d+) SHARED:(\d+) LOCAL:(\d+)", line):
            registers, stack, shared, local = map(int, match.groups())
            if name not in threads:
                raise Failure(f"kernel {name} has no KERNEL(threads) in kernels/src/cuda")
            if architecture >= 90 and shared:
                shared -= SYSTEM_SHARED
            found[name, architecture] = Usage(threads[name], shared, registers, stack, local)
    if not found:
        raise Failure("cuobjdump names no kernel")
    return found


def occupancy(architecture, used):
    """Blocks that an SM holds, and their threads in percent of the most."""
    sm = SM[architecture]
    warps = -(-used.threads // 32)
    a_warp = -(-used.registers * 32 // REGISTER_STEP) * REGISTER_STEP
    by_registers = REGISTERS // 4 // a_warp * 4 // warps
    shared = -(-(used.shared + SYSTEM_SHARED) // SHARED_STEP) * SHARED_STEP
    blocks = min(sm.blocks, sm.threads // (warps * 32), by_registers, sm.shared_kib * 1024 // shared)
    return blocks, 100 * blocks * warps * 32 // sm.threads


def table(images):
    """The text of resources.tsv."""
    lines = ["\t".join(["kernel", "image", "threads", "shared", *(f"sm_{architecture}" for architecture in SM)])]
    for kernel in sorted({kernel for found in images.values() for kernel, _ in found}):
        for image, found in images.items():
            of = {architecture: used for (name, architecture), used in found.items() if name == kernel}
            cells = []
            for architecture in SM:
                if architecture not in of:
                    cells.append("-")
                    continue
                blocks, percent = occupancy(architecture, of[architecture])
                cells.append(f"{of[architecture].registers}/{blocks}/{percent}%")
            threads = max(used.threads for used in of.values())
            shared = max(used.shared for used in of.values())
            lines.append("\t".join([kernel, image, str(threads), str(shared), *cells]))
    return "\n".join(lines) + "\n"


def allowed(text):
    """{(image, kernel, architecture): (threads, shared, registers)} from resources.tsv."""
    header, *lines = [line.split("\t") for line in text.splitlines()]
    limits = {}
    for kernel, image, threads, shared, *cells in lines:
        for column, cell in zip(header[4:], cells, strict=True):
            if cell != "-":
                limits[image, kernel, int(column.removeprefix("sm_"))] = int(threads), int(shared), int(cell.split("/")[0])
    return limits


def check_resources(images, text):
    """Sentences about what takes more than it may; none where all is well."""
    limits, problems = allowed(text), []
    for image, found in images.items():
        for (kernel, architecture), used in found.items():
            where = f"{kernel} in {image}, sm_{architecture},"
            if used.stack or used.local:
                problems.append(f"{where} takes {used.stack + used.local} bytes of local memory: it spills, or indexes an array of its own")
            if used.shared > 48 * 1024:
                problems.append(f"{where} takes {used.shared} bytes of static shared memory; 49152 are the most")
            limit = limits.pop((image, kernel, architecture), None)
            if limit is None:
                problems.append(f"{where} is not in kernels/images/resources.tsv; run scripts/cuda.sh --update and look at its occupancy")
            elif (used.threads, used.shared, used.registers) != limit:
                more = used.registers > limit[2] or used.shared > limit[1]
                problems.append(
                    f"{where} has {used.threads} threads, {used.shared} bytes of static shared memory and {used.registers} registers; "
                    f"kernels/images/resources.tsv {'allows' if more else 'still has'} {limit[0]}, {limit[1]} and {limit[2]}; "
                    f"{'make it take less, or ' if more else ''}run scripts/cuda.sh --update"
                )
    for image, kernel, architecture in limits:
        where = f"{kernel} in {image}, sm_{architecture}"
        problems.append(f"kernels/images/resources.tsv has {where}, which is no more; run scripts/cuda.sh --update")
    return problems


def disassembled(sass):
    """{(kernel, architecture): text} from what cuobjdump -sass prints."""
    found, architecture, name = {}, None, None
    for line in sass.splitlines():
        if match := re.match(r"arch = sm_(\d+)", line):
            architecture = int(match[1])
        elif match := re.match(r"\s*Function : (\w+)", line):
            name = match[1]
            found[name, architecture] = []
        elif name and "/*" in line:
            found[name, architecture].append(line)
    return {key: "\n".join(lines) for key, lines in found.items()}


def check_instructions(image, code):
    """Sentences about kernels without the instructions of MUST_HAVE."""
    problems = []
    for pattern, instruction, reason in MUST_HAVE:
        kernels = [key for key in code if re.fullmatch(pattern, key[0])]
        if not kernels:
            problems.append(f"MUST_HAVE of scripts/cuda_report.py names {pattern}, which is no kernel of {image}")
        for kernel, architecture in kernels:
            if not re.search(instruction, code[kernel, architecture]):
                problems.append(f"{kernel} in {image}, sm_{architecture}, has no {instruction}: {reason}")
    return problems
