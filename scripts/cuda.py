"""Compiles the device images and checks them. Run by cuda.sh, which says how: cuda.py --compile | --update | --check FOLDER, where FOLDER
holds the packages of cuda.txt.

Every image is a fat binary. cuda13.fatbin is for drivers of CUDA 13.0 and later, by nvcc. cuda12.fatbin is for those of CUDA 12, by
NVRTC 12.9: the last compiler whose code they load. ptx.fatbin has the PTX of the latter alone, for the compiler in the driver.
"""

import ctypes
import hashlib
import os
import re
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
# For zstd, which compresses better, a driver must be newer than some of CUDA 12; all of them know the older way, called speed.
Image = namedtuple("Image", "name compiler architectures compression")
WHOLE = [
    Image("cuda13.fatbin", "nvcc", [80, 86, 87, 89, 90, 100, 110, 120, 121], "size"),
    Image("cuda12.fatbin", "nvrtc", [80, 86, 87, 89, 90, 120, 121], "speed"),
]
PTX_ALONE = Image("ptx.fatbin", "nvrtc", [], "speed")
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
        # The library looks for its built-in functions beside itself only when they are already loaded.
        lib = folder / "cuda_nvrtc/lib"
        ctypes.CDLL(str(lib / "libnvrtc-builtins.so.12.9"), mode=ctypes.RTLD_GLOBAL)
        self.library = ctypes.CDLL(str(lib / "libnvrtc.so.12"))
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


def compile_all(nvcc, folder, to):
    """All images into the folder `to`."""
    compilers = {"nvcc": nvcc, "nvrtc": Nvrtc(folder)}
    with tempfile.TemporaryDirectory() as work, ThreadPoolExecutor(os.cpu_count()) as pool:
        work = Path(work)
        jobs = []
        for image in WHOLE:
            for architecture in image.architectures:
                file = work / f"{image.compiler}.sm_{architecture}.cubin"
                jobs.append(pool.submit(compilers[image.compiler].compile, "cubin", architecture, file))
            file = work / f"{image.compiler}.ptx"
            jobs.append(pool.submit(compilers[image.compiler].compile, "ptx", PTX_ARCHITECTURE, file))
        for job in jobs:
            job.result()
        for image in [*WHOLE, PTX_ALONE]:
            parts = [f"kind=elf,sm={a},file={work}/{image.compiler}.sm_{a}.cubin" for a in image.architectures]
            parts.append(f"kind=ptx,sm={PTX_ARCHITECTURE},file={work}/{image.compiler}.ptx")
            compression = [f"--compress-mode={image.compression}", "--compress-all"]
            nvcc.run("fatbinary", f"--create={to / image.name}", "-64", *compression, *[f"--image3={part}" for part in parts])


def checked_size():
    size = sum((IMAGES / image.name).stat().st_size for image in [*WHOLE, PTX_ALONE])
    if size > ALL_IMAGES_BYTES:
        raise Failure(f"the images take {size} bytes together; they may take {ALL_IMAGES_BYTES}")
    return size


def differences(nvcc, old, new):
    """What differs between two images of the same name, part by part."""

    def parts(image, work):
        for kind in ("elf", "ptx"):
            nvcc.run("cuobjdump", f"-x{kind}", "all", image, cwd=work)
        return {path.name: path.read_bytes() for path in Path(work).iterdir()}

    with tempfile.TemporaryDirectory() as one, tempfile.TemporaryDirectory() as two:
        before, after = parts(old, one), parts(new, two)
    names = sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))
    return ", ".join(names) if names else "the compression"


def compile_images(nvcc, folder):
    IMAGES.mkdir(exist_ok=True)
    compile_all(nvcc, folder, IMAGES)
    (IMAGES / "sources.sha256").write_text(hashes())
    print(f"kernels/images: {checked_size()} bytes")


def resources(nvcc):
    ptx = nvcc.run("cuobjdump", "-ptx", IMAGES / PTX_ALONE.name)
    return {image.name: usage(nvcc.run("cuobjdump", "-res-usage", IMAGES / image.name), ptx) for image in WHOLE}


def update(nvcc):
    (IMAGES / "resources.tsv").write_text(table(resources(nvcc)))


def check(nvcc, folder):
    problems = []
    if (IMAGES / "sources.sha256").read_text() != hashes():
        problems.append("kernels/images/sources.sha256 is not of these sources; run scripts/cuda.sh --compile")
    size = checked_size()
    found = resources(nvcc)
    problems += check_resources(found, (IMAGES / "resources.tsv").read_text())
    for image in WHOLE:
        code = nvcc.run("cuobjdump", "-sass", IMAGES / image.name)
        problems += check_instructions(image.name, disassembled(code))
    with tempfile.TemporaryDirectory() as fresh:
        compile_all(nvcc, folder, Path(fresh))
        for image in [*WHOLE, PTX_ALONE]:
            old, new = IMAGES / image.name, Path(fresh) / image.name
            if old.read_bytes() != new.read_bytes():
                what = differences(nvcc, old, new)
                problems.append(f"kernels/images/{image.name} is not what the sources compile to: {what}; run scripts/cuda.sh --compile")
    if problems:
        raise Failure("\n".join(problems))
    kernels = {kernel for rows in found.values() for kernel, _ in rows}
    codes = sum(len(image.architectures) for image in WHOLE)
    print(f"{len(kernels)} kernels in {codes} device codes, {size} bytes: as compiled from the sources, within resources.tsv")


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
    except (Failure, OSError) as failure:
        print(f"scripts/cuda.sh: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2]))
