"""Compiles the device images and checks them. Run by cuda.sh, which says how: cuda.py OPTION FOLDER, where FOLDER holds the packages of
cuda.txt.

Every image is a fat binary of uncompressed codes, packed as a whole by xz (`xz -d` and cuobjdump show what is in it): the codes of one
set are much alike, so that they take a third of what they do where each is compressed by itself, and a driver is given a plain code. cuda13
is for drivers of CUDA 13.0 and later, by nvcc. cuda12 is for those of CUDA 12, by NVRTC 12.9: the last compiler whose code they load. ptx
has the PTX of the latter, for the compiler in the driver. index.tsv says what is in each.
"""

import ctypes
import hashlib
import lzma
import os
import re
import struct
import subprocess
import sys
import tempfile
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from cuda_report import Failure, check_instructions, check_resources, disassembled, table, usage

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "kernels/src/cuda"
IMAGES = ROOT / "kernels/images"
UNIT = "kernels.cu"
STANDARD = "c++17"
PTX_ARCHITECTURE = 80
# A code stands after the one that it is most like.
Image = namedtuple("Image", "name compiler cuda cubins ptx")
WHOLE = [
    Image("cuda13.fatbin.xz", "nvcc", "13.5", [80, 87, 86, 89, 90, 100, 110, 120, 121], []),
    Image("cuda12.fatbin.xz", "nvrtc", "12.9", [80, 87, 86, 89, 90, 120, 121], []),
]
PTX = Image("ptx.fatbin.xz", "nvrtc", "12.9", [], [PTX_ARCHITECTURE])
ALL = [*WHOLE, PTX]
# Instructions are 16 bytes long. What unpacks takes as much memory as the dictionary has, which reaches back over one code.
PACKING = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "dict_size": 8 << 20, "lc": 0, "lp": 4, "pb": 4}]
ALL_IMAGES_BYTES = 4 << 20


def sources():
    """The files that the unit consists of, in the order in which it includes them, itself last."""
    found = []

    def visit(name):
        if name in found:
            return
        for included in re.findall(r'^\s*#\s*include\s+"([^"]+)"', (SOURCES / name).read_text(), re.MULTILINE):
            # The emulator's header, which no compiler for a device sees, stands outside the folder.
            if (SOURCES / included).is_file() and "/" not in included:
                visit(included)
        found.append(name)

    visit(UNIT)
    return found


def hashes():
    """What sources.sha256 must hold: a line a file, as sha256sum prints it."""
    return "".join(f"{hashlib.sha256((SOURCES / name).read_bytes()).hexdigest()}  {name}\n" for name in sources())


class Nvcc:
    """nvcc and the programs beside it."""

    def __init__(self, folder):
        self.bin = folder / "cu13/bin"

    def run(self, program, *arguments, cwd=None):
        done = subprocess.run([self.bin / program, *map(str, arguments)], cwd=cwd, capture_output=True, text=True)
        if done.returncode:
            raise Failure(f"{program} {' '.join(map(str, arguments))} failed:\n{done.stdout}{done.stderr}")
        return done.stdout

    def compile(self, kind, architecture, to):
        """Kind: cubin or ptx. The relative name of the unit keeps the folder's name out of the image."""
        prefix = "compute" if kind == "ptx" else "sm"
        arch = f"-arch={prefix}_{architecture}"
        self.run("nvcc", f"-std={STANDARD}", arch, f"-{kind}", "-Werror=all-warnings", "-o", to, UNIT, cwd=SOURCES)


class Nvrtc:
    """NVRTC 12.9, called as the program calls it on a device: sources in memory, no header but its own."""

    def __init__(self, folder):
        self.library = ctypes.CDLL(str(folder / "cuda_nvrtc/lib/libnvrtc.so.12"))
        self.library.nvrtcGetErrorString.restype = ctypes.c_char_p

    def ask(self, function, *arguments):
        status = getattr(self.library, function)(*arguments)
        if status:
            raise Failure(f"{function} of NVRTC failed: {self.library.nvrtcGetErrorString(status).decode()}")

    def compile(self, kind, architecture, to):
        headers = [name for name in sources() if name != UNIT]
        texts = (ctypes.c_char_p * len(headers))(*[(SOURCES / name).read_bytes() for name in headers])
        names = (ctypes.c_char_p * len(headers))(*[name.encode() for name in headers])
        program = ctypes.c_void_p()
        unit = (SOURCES / UNIT).read_bytes()
        self.ask("nvrtcCreateProgram", ctypes.byref(program), unit, UNIT.encode(), len(headers), texts, names)
        prefix = "compute" if kind == "ptx" else "sm"
        options = [f"--std={STANDARD}".encode(), f"--gpu-architecture={prefix}_{architecture}".encode()]
        status = self.library.nvrtcCompileProgram(program, len(options), (ctypes.c_char_p * len(options))(*options))
        if status:
            raise Failure(f"NVRTC failed for {prefix}_{architecture}:\n{self.bytes_of(program, 'ProgramLog').decode()}")
        data = self.bytes_of(program, "CUBIN" if kind == "cubin" else "PTX")
        self.ask("nvrtcDestroyProgram", ctypes.byref(program))
        Path(to).write_bytes(data if kind == "cubin" else data.rstrip(b"\0"))

    def bytes_of(self, program, what):
        size = ctypes.c_size_t()
        self.ask(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.ask(f"nvrtcGet{what}", program, buffer)
        return buffer.raw


def codes(image):
    return [("cubin", f"sm_{architecture}", architecture) for architecture in image.cubins] + [
        ("ptx", f"compute_{architecture}", architecture) for architecture in image.ptx
    ]


def index():
    """The text of index.tsv: file, CUDA version of the compiler, codes in their order."""
    lines = ["\t".join([image.name, image.cuda, " ".join(name for _, name, _ in codes(image))]) for image in ALL]
    return "\n".join(["image\tcuda\tcodes", *lines]) + "\n"


def compile_all(nvcc, folder, images):
    """{(name of an image, name of a code): the code}."""
    compilers = {"nvcc": nvcc, "nvrtc": Nvrtc(folder)}
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(os.cpu_count()) as pool:
        jobs, files = [], {}
        for image in images:
            for kind, name, architecture in codes(image):
                files[image.name, name] = Path(work) / f"{image.compiler}.{name}"
                jobs.append(pool.submit(compilers[image.compiler].compile, kind, architecture, files[image.name, name]))
        for job in jobs:
            job.result()
        return {key: file.read_bytes() for key, file in files.items()}


def fat_binary(nvcc, image, made):
    with tempfile.TemporaryDirectory() as work:
        parts = []
        for kind, name, architecture in codes(image):
            (Path(work) / name).write_bytes(made[image.name, name])
            parts.append(f"--image3=kind={'elf' if kind == 'cubin' else kind},sm={architecture},file={name}")
        nvcc.run("fatbinary", "--create=whole", "-64", "--compress-mode=none", *parts, cwd=work)
        return (Path(work) / "whole").read_bytes()


def codes_of(data):
    """{name of a code: the code} of a fat binary: a header of 16 bytes, then entries, each a header with kind (1 PTX, 2 cubin), its own
    size, that of the code and the architecture, and the code with zeros behind it."""
    found, offset = {}, 16
    while offset < len(data):
        kind, _, header, size = struct.unpack_from("<HHIQ", data, offset)
        architecture = struct.unpack_from("<I", data, offset + 28)[0]
        found[f"{'compute' if kind == 1 else 'sm'}_{architecture}"] = data[offset + header : offset + header + size]
        offset += header + size
    return found


def unpacked(image):
    return lzma.decompress((IMAGES / image.name).read_bytes())


def checked_size():
    size = sum((IMAGES / image.name).stat().st_size for image in ALL)
    if size > ALL_IMAGES_BYTES:
        raise Failure(f"the images take {size} bytes together; they may take {ALL_IMAGES_BYTES}")
    return size


def compile_images(nvcc, folder):
    IMAGES.mkdir(exist_ok=True)
    made = compile_all(nvcc, folder, ALL)
    for image in ALL:
        packed = lzma.compress(fat_binary(nvcc, image, made), check=lzma.CHECK_CRC32, filters=PACKING)
        (IMAGES / image.name).write_bytes(packed)
    (IMAGES / "index.tsv").write_text(index())
    (IMAGES / "sources.sha256").write_text(hashes())
    print(f"kernels/images: {checked_size()} bytes")


def dumped(nvcc, what, image):
    """What cuobjdump prints of an image."""
    with tempfile.TemporaryDirectory() as work:
        (Path(work) / "image.fatbin").write_bytes(unpacked(image))
        return nvcc.run("cuobjdump", what, "image.fatbin", cwd=work)


def resources(nvcc):
    ptx = dumped(nvcc, "-ptx", PTX)
    return {image.name.split(".")[0]: usage(dumped(nvcc, "-res-usage", image), ptx) for image in WHOLE}


def update(nvcc):
    (IMAGES / "resources.tsv").write_text(table(resources(nvcc)))


def check(nvcc, folder):
    problems = []
    for name, expected in (("sources.sha256", hashes()), ("index.tsv", index())):
        if (IMAGES / name).read_text() != expected:
            problems.append(f"kernels/images/{name} is not of these sources; run scripts/cuda.sh --compile")
    size = checked_size()
    found = resources(nvcc)
    problems += check_resources(found, (IMAGES / "resources.tsv").read_text())
    for image in WHOLE:
        problems += check_instructions(image.name, disassembled(dumped(nvcc, "-sass", image)))
    there = {(image.name, name): code for image in ALL for name, code in codes_of(unpacked(image)).items()}
    made = compile_all(nvcc, folder, ALL)
    for image in ALL:
        # NVRTC does not take the same registers each time (seen for sm_90), so its codes have to compile, no more.
        if image.compiler != "nvcc":
            continue
        for name, code in codes_of(fat_binary(nvcc, image, made)).items():
            if there.get((image.name, name)) != code:
                problems.append(f"{name} of kernels/images/{image.name} is not what the sources compile to; run scripts/cuda.sh --compile")
    if problems:
        raise Failure("\n".join(problems))
    kernels = {kernel for rows in found.values() for kernel, _ in rows}
    print(
        f"{len(kernels)} kernels in {len(there)} codes, {size} bytes: within resources.tsv; {len(made)} codes compiled again, "
        "those of nvcc the same as in kernels/images"
    )


def main(command, folder):
    folder = Path(folder).resolve()
    nvcc = Nvcc(folder)
    try:
        if command == "--compile":
            compile_images(nvcc, folder)
        elif command == "--update":
            update(nvcc)
        else:
            check(nvcc, folder)
    except (Failure, OSError, lzma.LZMAError) as failure:
        print(f"scripts/cuda.sh: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
