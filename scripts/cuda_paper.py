"""What every CUDA kernel should take on three devices, by arithmetic: writes the tables of docs/cuda.md between its markers.

    python3 scripts/cuda_paper.py                   write the tables
    python3 scripts/cuda_paper.py --check           fail where they are not what this program writes, or where a kernel has no line
    python3 scripts/cuda_paper.py --compare FILE    fail where launches that were made (JSON lines of the bench cuda_kernels, or the results
                                                    of benches/gpu.sh) are not those of cuda_work.py: kernel, launches, bytes, flops

The registers of kernels/images/resources.tsv give occupancy, cuda_work.py bytes, flops and blocks, and the model below the time. Nothing
here was measured; benches/gpu.sh measures.
"""

import json
import re
import sys
from collections import namedtuple
from pathlib import Path

from cuda_report import Failure, Usage, occupancy
from cuda_work import CASES, Case, Target, cache_bytes, describe, is_quantised, launches, read_cases, weight_bytes

ROOT = Path(__file__).resolve().parent.parent
SOURCES = ROOT / "kernels/src/cuda"
RESOURCES = ROOT / "kernels/images/resources.tsv"
PAGE = ROOT / "docs/cuda.md"

# Peaks in operations a second (a multiplication and an addition are two), of dense matrices with f32 sums; bandwidth in bytes a second;
# the latency of device memory in seconds. docs/cuda.md says where each number is from. `matrix` is the share of the matrix peak that
# mma.sync instructions, which these kernels are made of, reach at best.
Device = namedtuple("Device", "name column target bandwidth l2_bytes fma tf32 half matrix latency")
DEVICES = [
    Device("Jetson AGX Orin", "Orin", Target(16, 87), 204.8e9, 4e6, 5.3e12, 21.3e12, 42.6e12, 0.95, 0.8e-6),
    Device("DGX Spark", "Spark", Target(48, 121), 273e9, 24e6, 29.7e12, 31e12, 62e12, 0.95, 0.8e-6),
    Device("H100 SXM", "H100", Target(132, 90), 3.35e12, 50e6, 67e12, 495e12, 989e12, 0.62, 0.65e-6),
]

# Assumptions. From the start of a kernel that waits for the one before it to its first load, and from its last store to its end.
START_S = 2e-6
# What a launch on a stream costs the host, with this program's checks.
LAUNCH_S = 2.5e-6
# Of the peak bandwidth, what a plain copy reaches.
COPY = 0.92
# Of the pipe's peak (matrix instructions: of what mma.sync reaches), what the inner loops reach with enough warps: tiles of 4 by 4 numbers
# a thread are held up by shared memory, those of 8 by 8 less; exact products also split numbers on the ordinary pipe.
LOOPS = {"fma_4": 0.5, "fma_8": 0.7, "plain": 0.5, "tf32": 0.6, "half_fast": 0.75, "half_exact": 0.65}
# The second-level cache against device memory: times the bandwidth, share of the latency.
CACHE_BANDWIDTH, CACHE_LATENCY = 2.5, 0.4
# The last block adds up the parts of the others. Beside reading them it waits for the second-level cache so often: fences and counter.
JOIN_WAITS = 3
# Warps of an SM below which its pipes stand idle between dependent instructions.
BUSY_WARPS = 8

REASONS = {
    "memory": "memory bandwidth",
    "latency": "memory latency: too few bytes are on their way to fill the bus",
    "pipe": "arithmetic",
    "fill": "arithmetic on a part of the SMs: the last or only wave of blocks does not fill them",
    "start": "start and end of the kernel are half of its time or more",
}

Estimate = namedtuple("Estimate", "blocks_an_sm occupancy floor_s expected_s reason")


def read_resources(text):
    """{(kernel, architecture): Usage}; of two compilers the one that takes more registers."""
    header, *lines = [line.split("\t") for line in text.splitlines()]
    found = {}
    for kernel, _image, threads, shared, *cells in lines:
        for column, cell in zip(header[4:], cells, strict=True):
            if cell == "-":
                continue
            key, registers = (kernel, int(column.removeprefix("sm_"))), int(cell.split("/")[0])
            if key not in found or registers > found[key].registers:
                found[key] = Usage(int(threads), int(shared), registers, 0, 0)
    return found


def loop_share(launch):
    kernel = launch.kernel
    if launch.pipe == "half":
        return LOOPS["half_fast" if "_fast_" in kernel else "half_exact"]
    if launch.pipe == "tf32":
        return LOOPS["tf32"]
    if kernel == "gemm_f32_128":
        return LOOPS["fma_8"]
    return LOOPS["fma_4" if launch.operations else "plain"]


def estimate(launch, device, used, cached=False):
    """Floor and expected time of one launch; `cached`: what it reads was just written, and is in the second-level cache if it fits."""
    blocks_an_sm, percent = occupancy(device.target.capability, used._replace(shared=used.shared + launch.shared))
    if not blocks_an_sm:
        raise Failure(f"{launch.kernel} does not fit an SM of {device.name}: {used.shared + launch.shared} bytes of shared memory")
    peak = getattr(device, launch.pipe)
    floor = max(launch.bytes / device.bandwidth, launch.flops / peak)
    sms, blocks = device.target.multiprocessors, max(launch.blocks, 1)
    resident = min(blocks, sms * blocks_an_sm)
    cached = cached and 2 * launch.bytes <= device.l2_bytes
    memory = launch.bytes / (COPY * device.bandwidth) / (CACHE_BANDWIDTH if cached else 1)
    # Little's law: bytes on their way over the time that each is.
    latency = launch.bytes * device.latency / max(resident * launch.in_flight, 1) * (CACHE_LATENCY if cached else 1)
    # An SM works through its blocks, those that it holds at a time side by side.
    fullest = -(-blocks // sms)
    busy = min(1.0, min(fullest, blocks_an_sm) * launch.threads / 32 / BUSY_WARPS)
    reachable = peak * loop_share(launch) * busy * (device.matrix if launch.pipe != "fma" else 1)
    arithmetic = (launch.operations or launch.flops) / reachable
    filled = blocks / (fullest * sms)
    longest = max(memory, latency, arithmetic / filled)
    if START_S >= longest:
        reason = "start"
    elif longest == memory:
        reason = "memory"
    elif longest == latency:
        reason = "latency"
    else:
        reason = "pipe" if filled * busy > 0.7 else "fill"
    joining = (JOIN_WAITS + launch.joins) * device.latency * CACHE_LATENCY if launch.joins else 0
    return Estimate(blocks_an_sm, percent, floor, START_S + longest + joining, reason)


def kernels():
    """Every kernel of the sources, by file."""
    found = {}
    for path in sorted(SOURCES.glob("*.cu")):
        for name in re.findall(r"^KERNEL\(\d+\)\s*(\w+)", path.read_text(), re.MULTILINE):
            found[name] = path.name
    return found


def lines_of(cases):
    """{kernel: (case, {device: Launch})}: the first case that launches a kernel on the most devices."""
    chosen = {}
    for kernel in kernels():
        best = None
        for case in cases:
            by_device = {}
            for device in DEVICES:
                for launch in launches(case, device.target, kernel):
                    if launch.kernel == kernel:
                        by_device.setdefault(device.column, launch)
            natural = sum(not launch.forced for launch in by_device.values())
            if natural and (best is None or natural > best[0]):
                best = (natural, case, by_device)
        if best is None:
            raise Failure(f"no case of benches/cuda_cases.txt launches {kernel}; add one, and its launch to scripts/cuda_work.py")
        chosen[kernel] = best[1:]
    return chosen


def quantity(n):
    """Three digits."""
    return f"{n:.0f}" if n >= 100 else f"{n:.1f}" if n >= 10 else f"{n:.2f}" if n >= 0.01 else f"{n:.4f}"


def cell(launch, device, resources):
    if launch is None:
        return "–"
    used = resources.get((launch.kernel, device.target.capability))
    if used is None:
        raise Failure(f"kernels/images/resources.tsv lacks {launch.kernel} for sm_{device.target.capability}; run scripts/cuda.sh --update")
    found = estimate(launch, device, used)
    us = lambda seconds: quantity(seconds * 1e6)
    mark = "†" if launch.forced else ""
    share = 100 * found.floor_s / found.expected_s
    return f"{launch.blocks} b, {found.occupancy} %; {us(found.floor_s)} → {us(found.expected_s)} µs, **{quantity(share)} %** {found.reason}{mark}"


def kernel_table(cases, resources):
    """The table of every kernel."""
    files, chosen = kernels(), lines_of(cases)
    text, file = [], None
    numbers = {id(case): number for number, case in enumerate(cases, 1)}
    for kernel in files:
        if files[kernel] != file:
            file = files[kernel]
            text += ["", f"`{file}`", ""]
            text.append("| kernel | case | MB | Mflop | " + " | ".join(device.column for device in DEVICES) + " |")
            text.append("|--|--|--|--|" + "--|" * len(DEVICES))
        case, by_device = chosen[kernel]
        some = next(iter(by_device.values()))
        cells = [cell(by_device.get(device.column), device, resources) for device in DEVICES]
        work = f"{quantity(some.bytes / 1e6)} | {quantity(some.flops / 1e6)}"
        text.append(f"| {kernel} | {numbers[id(case)]} | {work} | {' | '.join(cells)} |")
    text += ["", "The cases:", ""]
    used = {id(case) for case, _ in chosen.values()}
    text += [f"* {numbers[id(case)]}: {case.use}, `{describe(case)}`" for case in cases if id(case) in used]
    return "\n".join(text[1:])


# The passes as runtime/src/forward.rs and layer_forward.rs make them: (times, operation, sizes).
SIGNAL = dict(d=768, heads=12, channels=3072, layers=12, tokens=32)
LLAMA = dict(d=2048, heads=32, groups=8, head_dim=64, channels=8192, layers=16, vocabulary=128256, keys=1024)
SMALL_LLAMA = dict(d=768, heads=12, groups=12, head_dim=64, channels=2048, layers=12, vocabulary=32000, keys=1024)
SMOLLM2 = dict(d=576, heads=9, groups=3, head_dim=64, channels=1536, layers=30, vocabulary=49152, keys=1024)
# GPT-2: biases, learned positions, no gate.
IGLM = dict(d=512, heads=8, groups=8, head_dim=64, channels=2048, layers=4, vocabulary=33, keys=512)


def window_pass(format, precision):
    d, heads, channels, layers, m = (SIGNAL[name] for name in ("d", "heads", "channels", "layers", "tokens"))
    units = format if format == "f32" else f"{format}_pairs"
    sizes = dict(m=m, columns=d, bias=1, precision=precision)
    summed = lambda k: ("project_units", dict(sizes, format=units, rows=k))
    norm = ("norm", dict(m=m, d=d))
    attention = ("attention", dict(batch=1, queries=m, keys=m, heads=heads, groups=heads, head_dim=d // heads))
    layer = [norm, ("project_rows", dict(sizes, format=format, rows=d, other_rows=d, count=3)), attention, summed(d)]
    layer += [norm, ("project_activated", dict(sizes, format=format, rows=channels, gated=0)), summed(channels)]
    first = [("patches", dict(batch=1, window=2048, patch=64, stride=64)), ("project_rows", dict(sizes, format=format, rows=d, columns=64))]
    first.append(("add_positions", dict(format=format, batch=1, sequence=m, rows=m, columns=d)))
    head = ("project_rows", dict(format=format, m=1, rows=10, columns=d, bias=1))
    last = [norm, ("mean_pool", dict(batch=1, sequence=m, d=d)), head, ("softmax", dict(m=1, n=10))]
    return [*first, *layers * layer, *last]


def token_pass(format, shape, gpt2=False):
    d, heads, groups, head_dim, channels, layers, vocabulary, keys = shape.values()
    of_rows = dict(format=format, m=1, columns=d, bias=int(gpt2))
    units = format if format == "f32" else f"{format}_units" if is_quantised(format) else f"{format}_pairs"
    summed = lambda k: ("project_units", dict(of_rows, format=units, rows=k))
    norm = ("norm", dict(m=1, d=d))
    attention = ("attention", dict(batch=1, queries=1, keys=keys, heads=heads, groups=groups, head_dim=head_dim))
    layer = [norm, ("project_rows", dict(of_rows, rows=heads * head_dim, other_rows=groups * head_dim, count=3))]
    layer += [("cache_tokens", dict(sequence=1, heads=heads, groups=groups, head_dim=head_dim, capacity=keys))]
    layer += [attention, summed(heads * head_dim), norm]
    layer += [("project_activated", dict(of_rows, rows=channels, gated=int(not gpt2))), summed(channels)]
    first = [("embed", dict(format=format, count=1, rows=vocabulary, columns=d))]
    if gpt2:
        first.append(("add_positions", dict(format=format, batch=1, sequence=1, rows=keys, columns=d)))
    return [*first, *layers * layer, norm, ("project_rows", dict(of_rows, rows=vocabulary, bias=0))]


def passes():
    """{name, as the bench cuda_kernels has it: steps}."""
    windows = [("f32", "exact"), ("bf16", "exact"), ("bf16", "fast"), ("f16", "exact"), ("f16", "fast")]
    found = {f"window, {format}, {precision}": window_pass(format, precision) for format, precision in windows}
    for size, shape in (("1.2 B", LLAMA), ("0.11 B", SMALL_LLAMA)):
        found |= {f"token, {size}, {format}": token_pass(format, shape) for format in ("bf16", "q8", "q4")}
    return found | {"token, SmolLM2 135 M, bf16": token_pass("bf16", SMOLLM2), "token, IgLM 13 M, f32": token_pass("f32", IGLM, gpt2=True)}


def pass_line(name, steps, device, resources):
    """Launches, weights and time of a pass."""
    nodes, expected, weights, cache = 0, 0.0, 0, 0
    for operation, sizes in steps:
        case = Case("pass", operation, sizes)
        for launch in launches(case, device.target):
            cached = not launch.kernel.startswith(("gemm", "gemv", "attention_decode"))
            found = estimate(launch, device, resources[launch.kernel, device.target.capability], cached)
            nodes, expected = nodes + 1, expected + found.expected_s
        weights, cache = weights + weight_bytes(case), cache + cache_bytes(case)
    host = nodes * LAUNCH_S
    by_bytes = weights / device.bandwidth
    fixed = expected - (weights + cache) / device.bandwidth / COPY
    return (
        f"| {name} | {device.column} | {nodes} | {weights / 1e6:.0f} | {cache / 1e6:.0f} | {by_bytes * 1e3:.2f} | {host * 1e3:.2f} | "
        f"{expected * 1e3:.2f} | {fixed * 1e3:.2f} | {100 * by_bytes / COPY / expected:.0f} % |"
    )


def pass_table(resources):
    """Whole passes: launches, bytes of weights, time."""
    text = ["| pass | device | launches | weights, MB | KV cache, MB | floor, ms | host, ms | device, ms | fixed, ms | of copy bandwidth |"]
    text.append("|--|--|--|--|--|--|--|--|--|--|")
    return "\n".join(text + [pass_line(name, steps, device, resources) for name, steps in passes().items() for device in DEVICES])


def tables():
    """{marker: text}."""
    if not RESOURCES.is_file():
        raise Failure(f"{RESOURCES.relative_to(ROOT)} is missing; run scripts/cuda.sh --update")
    cases, resources = read_cases(CASES.read_text()), read_resources(RESOURCES.read_text())
    return {"passes": pass_table(resources), "kernels": kernel_table(cases, resources)}


def page():
    """docs/cuda.md with the tables of now."""
    text = PAGE.read_text()
    for marker, table in tables().items():
        begin, end = f"<!-- {marker}: by scripts/cuda_paper.py -->", f"<!-- end of {marker} -->"
        before, found, rest = text.partition(begin)
        _, found_end, after = rest.partition(end)
        if not found or not found_end:
            raise Failure(f"docs/cuda.md lacks `{begin}` with `{end}` behind it")
        text = f"{before}{begin}\n\n{table}\n\n{end}{after}"
    return text


def made_launches(text):
    """The device, the cases and the passes of JSON lines or of a results file."""
    try:
        results = json.loads(text)
        lines = [results["device"], *results["kernels"], *results["passes"]]
    except ValueError:
        lines = [json.loads(line) for line in text.splitlines()]
    return [[line for line in lines if line.get("what") == what] for what in ("device", "case", "pass")]


def compare_pass(made, device):
    """Whether a pass of the whole network has as many launches as computed; a smaller one cannot be told."""
    steps = passes()[made["name"]]
    cases = [Case("pass", operation, sizes) for operation, sizes in steps]
    weights = sum(weight_bytes(case) for case in cases)
    if made["weight_bytes"] < weights // 2:
        return []
    major, minor = device["capability"]
    target = Target(device["multiprocessors"], major * 10 + minor)
    count = sum(len(launches(case, target)) for case in cases)
    return [] if count == made["launches"] else [f"{made['name']}: {made['launches']} launches; cuda_paper.py has {count}"]


def compare(path):
    """Sentences about launches that were made otherwise than cuda_work.py computes."""
    problems, compared = [], 0
    devices, cases, made_passes = made_launches(Path(path).read_text())
    for made in made_passes:
        problems += compare_pass(made, devices[0])
        compared += 1
    for made in cases:
        case = read_cases(made["case"])[0]
        major, minor = made["capability"]
        target = Target(made["multiprocessors"], major * 10 + minor)
        computed = {}
        for launch in launches(case, target):
            count, size, flops = computed.get(launch.kernel, (0, 0, 0))
            computed[launch.kernel] = count + 1, size + launch.bytes, flops + launch.flops
        found = {kernel["name"]: (kernel["launches"], kernel["bytes"], kernel["flops"]) for kernel in made["kernels"]}
        compared += 1
        for kernel in sorted(computed.keys() | found.keys()):
            if computed.get(kernel) != found.get(kernel):
                problems.append(f"{made['case']}: {kernel}: launches, bytes, flops {found.get(kernel)}; cuda_work.py has {computed.get(kernel)}")
    if not compared:
        problems.append(f"{path} holds no case")
    if not problems:
        print(f"{compared} cases and passes launch what scripts/cuda_work.py computes")
    return problems


def main(arguments):
    try:
        if arguments == ["--check"]:
            if PAGE.read_text() != page():
                raise Failure("the tables of docs/cuda.md are not those of today's kernels; run python3 scripts/cuda_paper.py")
        elif len(arguments) == 2 and arguments[0] == "--compare":
            if problems := compare(arguments[1]):
                raise Failure("\n".join(problems))
        elif not arguments:
            PAGE.write_text(page())
        else:
            raise Failure(f"unexpected arguments {arguments}; --check, --compare FILE or none")
    except (Failure, OSError) as failure:
        print(f"scripts/cuda_paper.py: {failure}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
