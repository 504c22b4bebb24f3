"""Which kernels an operation launches on a device, with how many blocks, for what bytes and flops: the arithmetic of the launchers in
kernels/src/cuda/*.rs once more, for cuda_paper.py. `cuda_paper.py --compare` holds it against what the launchers really did.

Beside the launchers' numbers a Launch says what the kernel's source tells about its speed: which pipe computes, how many operations it
really takes there (tiles that are not full, several products for an exact one), and how many bytes a block has on their way.
"""

from collections import namedtuple
from dataclasses import dataclass, replace
from pathlib import Path

CASES = Path(__file__).resolve().parent.parent / "benches/cuda_cases.txt"

# A device as far as a launcher asks: multiprocessors, compute capability as a number.
Target = namedtuple("Target", "multiprocessors capability")

NUMBER_BYTES = {"f32": 4, "f16": 2, "bf16": 2, "f16_pairs": 2, "bf16_pairs": 2}
# Quants, a scale and, of four bits, a minimum.
BLOCK, BLOCK_BYTES = 32, {"q8": 32 + 2, "q4": 16 + 4, "q8_units": 32 + 2, "q4_units": 16 + 4}


def is_quantised(format):
    return format in BLOCK_BYTES


def matrix_bytes(format, rows, columns):
    """Bytes of a stored matrix [rows, columns], without gaps."""
    if not is_quantised(format):
        return rows * columns * NUMBER_BYTES[format]
    blocks = ceil_div(rows, BLOCK) * columns if format.endswith("_units") else rows * ceil_div(columns, BLOCK)
    return blocks * BLOCK_BYTES[format]


def table_bytes(format, count):
    """Bytes of `count` of its numbers, with their share of scales and minima."""
    return ceil_div(count * BLOCK_BYTES[format], BLOCK) if is_quantised(format) else count * NUMBER_BYTES[format]


@dataclass(frozen=True)
class Launch:
    kernel: str
    blocks: int
    threads: int
    bytes: int
    flops: int
    # Dynamic shared memory of a block.
    shared: int = 0
    # fma, tf32 or half (16-bit matrix instructions).
    pipe: str = "fma"
    # Operations on that pipe; those that are asked for, where it is 0.
    operations: int = 0
    # Bytes of device memory that a block has under way at a time, read and written.
    in_flight: int = 0
    # How often a thread of the last block waits for parts of the others, which it adds up.
    joins: int = 0
    # Whether the kernel is taken because it was asked for, though the launcher would take another on this device.
    forced: bool = False


Case = namedtuple("Case", "use operation sizes")


def read_cases(text):
    """The lines of benches/cuda_cases.txt."""
    cases = []
    for line in text.splitlines():
        if not line or line.startswith("#"):
            continue
        use, operation, *sizes = line.split()
        pairs = dict(size.split("=") for size in sizes)
        cases.append(Case(use, operation, {name: int(value) if value.isdigit() else value for name, value in pairs.items()}))
    return cases


def describe(case):
    """The case in a few words."""
    return " ".join([case.operation, *(f"{name}={value}" for name, value in case.sizes.items())])


def ceil_div(a, b):
    return -(-a // b)


def numbers(count, flops):
    """What reads and writes `count` numbers of 4 bytes."""
    return {"bytes": 4 * count, "flops": flops}


def launches(case, target, kernel=None):
    """The launches of a case, in order. With `kernel`, the variant of tile that it belongs to, whatever the launcher would choose."""
    return globals()[f"launch_{case.operation}"](target, kernel, **case.sizes)


# Products.

GEMV_TOKENS = 8


def product_work(m, n, k, b_bytes, accumulate=False):
    return {"bytes": 4 * m * k + b_bytes * k * n + (8 if accumulate else 4) * m * n, "flops": 2 * m * n * k}


def split_of(blocks, k, slice_, target):
    """Parts of k, and blocks of all parts."""
    splits = max(min(target.multiprocessors // max(blocks, 1), k // (8 * slice_)), 1)
    each = ceil_div(ceil_div(k, splits), slice_) * slice_
    return max(ceil_div(k, each), 1)


def sum_splits(m, n, splits):
    if splits <= 1:
        return []
    return [Launch("sum_splits", ceil_div(m * n, 256), 256, **numbers((splits + 1) * m * n, splits * m * n), in_flight=256 * 4 * 2)]


def joined(launch, m, n, splits, width):
    """A launch [m, n] whose blocks of `width` columns add their parts up."""
    if splits <= 1:
        return [launch]
    work = {"bytes": launch.bytes + 8 * splits * m * n, "flops": launch.flops + splits * m * n}
    return [replace(launch, **work, joins=ceil_div(m * width, launch.threads) * ceil_div(splits, 8))]


def padded(m, n, k, tile_m, tile_n):
    return 2 * ceil_div(m, tile_m) * tile_m * ceil_div(n, tile_n) * tile_n * k


def gemm_f32(target, kernel, m, n, k, transpose_a, transpose_b):
    sides = [128 if m > 64 and ceil_div(m, 128) * ceil_div(n, 128) >= target.multiprocessors else 64]
    tensor_cores = [target.capability in (80, 87) or 90 <= target.capability < 120]
    tensor_cores[0] &= min(m, n) >= 32 and k >= 32
    if kernel is not None and kernel.startswith("gemm_"):
        tensor_cores.append("tf32" in kernel)
        sides.append(128 if "_128" in kernel else 64)
    side, by_tensor_cores = sides[-1], tensor_cores[-1]
    forced = len(set(sides)) > 1 or len(set(tensor_cores)) > 1
    work = product_work(m, n, k, 4)
    splits = split_of(ceil_div(m, side) * ceil_div(n, side), k, 16, target)
    blocks = ceil_div(m, side) * ceil_div(n, side) * splits
    if by_tensor_cores:
        letters = ("t" if transpose_a else "n") + ("t" if transpose_b else "n")
        tile = lambda k_inside: side * 64 + (0 if k_inside else 16 * 32)
        shared = 3 * (tile(not transpose_a) + tile(transpose_b))
        launch = Launch(
            f"gemm_tf32_{side}_{letters}", blocks, 256 if side == 128 else 128, **work, shared=shared, pipe="tf32",
            operations=3 * padded(m, n, k, side, side), in_flight=2 * 2 * side * 64, forced=forced,
        )  # fmt: skip
    else:
        launch = Launch(
            f"gemm_f32_{side}", blocks, 256, **work, operations=padded(m, n, k, side, side), in_flight=2 * side * 64, forced=forced
        )
    return [launch, *sum_splits(m, n, splits)]


def gemm_half(target, kernel, m, n, k, format, form, precision):
    f16 = format.startswith("f16")
    parts = 1 if precision == "fast" else 2 if f16 else 3
    tile_bytes = {
        ("rows", False): 128 * 64, ("units", False): 32 * 256, ("rows", True): 64 * (128 + 32), ("units", True): 16 * (512 + 32),
    }[form, format.endswith("pairs")]  # fmt: skip
    tiles = lambda tile_m: ceil_div(m, tile_m) * ceil_div(n, 128)
    large = m > 64 and tiles(128) >= target.multiprocessors
    forced = False
    if kernel is not None and kernel.startswith("gemm_"):
        forced, large = large != kernel.endswith("_128"), kernel.endswith("_128")
    tile_m = 128 if large else 32
    splits = split_of(tiles(tile_m), k, 32, target)
    name = f"gemm_{format.removesuffix('_pairs')}_{form}{'_pairs' if format.endswith('_pairs') else ''}"
    product = Launch(
        f"{name}_{'fast' if precision == 'fast' else 'exact'}_{tile_m}", tiles(tile_m) * splits, 256 if large else 128,
        **product_work(m, n, k, 2), shared=2 * parts * tile_m * 64 + 3 * tile_bytes, pipe="half",
        operations=parts * padded(m, n, k, tile_m, 128), in_flight=2 * tile_bytes + tile_m * 128, forced=forced,
    )  # fmt: skip
    scales = [Launch("scale_rows", ceil_div(m, 8), 256, bytes=4 * (m * k + m), flops=m * k, in_flight=256 * 16)] if f16 else []
    return [*scales, product, *sum_splits(m, n, splits)]


CHUNK = {"f32": (1, 4), "f16": (1, 8), "bf16": (1, 8), "f16_pairs": (2, 4), "bf16_pairs": (2, 4)}


def for_tokens(name, m):
    return f"{name}_{1 if m <= 1 else 4 if m <= 4 else 8}"


def warps_a_row(target, rows, k, chunk_columns):
    enough = lambda split: ceil_div(rows, 4) * split >= 16 * target.multiprocessors or k < 2 * split * 32 * chunk_columns
    return next((split for split in (1, 2, 4) if enough(split)), 4)


def gemv_rows(target, m, n, k, format):
    chunk_rows, chunk_columns = CHUNK[format]
    blocks = ceil_div(ceil_div(n, 4), 4 // warps_a_row(target, n, k, chunk_columns))
    loads = 4 // chunk_rows
    return [Launch(for_tokens(f"gemv_rows_{format}", m), blocks, 128, **product_work(m, n, k, NUMBER_BYTES[format]), in_flight=128 * 16 * loads)]


def gemv_units(target, m, n, k, format):
    chunk_rows, chunk_columns = CHUNK[format]
    blocks, outers = ceil_div(n, 32 * chunk_columns), ceil_div(k, chunk_rows)
    splits = max(min(ceil_div(2 * target.multiprocessors, blocks), outers // 32), 1)
    each = max(ceil_div(outers, splits), 1)
    splits = max(ceil_div(outers, each), 1)
    work = product_work(m, n, k, NUMBER_BYTES[format])
    # Steps down the rows that are under way at once.
    steps = 4 if m <= 1 else 2
    launch = Launch(for_tokens(f"gemv_units_{format}", m), blocks * splits, 256, **work, in_flight=256 * 16 * steps)
    return joined(launch, m, n, splits, 32 * chunk_columns)


def quantised_work(m, n, k, format, rows, columns):
    work = product_work(m, n, k, 0)
    return {**work, "bytes": work["bytes"] + matrix_bytes(format, rows, columns)}


def split_name(format):
    """q8 or q4, and whether the blocks run along 32 rows."""
    return format.removesuffix("_units"), format.endswith("_units")


def gemv_quantised_rows(target, all_rows, columns, format, gated=False):
    """One token's products with up to three matrices, or with up and gate."""
    warps, chunks = [ceil_div(rows, 16) for rows in all_rows], ceil_div(columns, 16 if format == "q8" else 32)
    most = 2 if gated else 4
    enough = lambda split: split == most or sum(warps) * split >= 16 * target.multiprocessors or chunks < 2 * split * 8
    split = next(split for split in (1, 2, 4) if enough(split))
    groups = 4 // split // (2 if gated else 1)
    blocks = [ceil_div(n, groups) for n in warps]
    work = [quantised_work(1, rows, columns, format, rows, columns) for rows in all_rows]
    totals = {name: sum(of_one[name] for of_one in work) for name in work[0]}
    return Launch(f"gemv_rows_{format}", blocks[0] if gated else sum(blocks), 128, **totals, in_flight=128 * 16 * 4)


def gemv_quantised_units(target, rows, columns, format):
    q, _ = split_name(format)
    loads = 8 if q == "q8" else 4
    blocks, steps = ceil_div(columns, 128), ceil_div(rows, BLOCK)
    splits = max(min(ceil_div(2 * target.multiprocessors, blocks), steps // (8 * ceil_div(4, loads))), 1)
    each = max(ceil_div(steps, splits), 1)
    splits = max(ceil_div(steps, each), 1)
    work = quantised_work(1, columns, rows, format, rows, columns)
    launch = Launch(f"gemv_units_{q}_interleaved", blocks * splits, 256, **work, in_flight=256 * 16 * loads)
    return joined(launch, 1, columns, splits, 128)


# Bytes of a tile of quants: of products_quantized.cu, and of products_quantized_backward.cu.
FORWARD_TILE = {"q8": 128 * 32, "q4": 128 * 16, "q8_units": 8 * (512 + 16), "q4_units": 4 * (512 + 32)}
BACKWARD_TILE = {"q8": 32 * 128, "q4": 32 * 64, "q8_units": 32 * 128, "q4_units": 16 * 128}


def gemm_quantised(target, kernel, m, n, k, rows, columns, format, form, precision):
    q, interleaved = split_name(format)
    backward = (form == "units") != interleaved
    tiles = lambda tile_m: ceil_div(m, tile_m) * ceil_div(n, 128)
    large = m > 64 and tiles(128) >= target.multiprocessors
    forced = False
    if kernel is not None and kernel.startswith("gemm_"):
        forced, large = large != kernel.endswith("_128"), kernel.endswith("_128")
    tile_m, threads = (128, 256) if large else (32, 128)
    splits = split_of(tiles(tile_m), k, 32, target)
    planes = 2 if q == "q4" else 1
    if backward:
        parts, tile = 3, BACKWARD_TILE[format]
        shared, in_flight = 3 * (tile_m * 128 + tile), 2 * (tile_m * 128 + tile)
    else:
        parts, tile = 1 if precision == "fast" else 2, FORWARD_TILE[format]
        shared = 2 * parts * tile_m * 64 + 4 * tile + (2 * tile_m * 4 if q == "q4" else 0)
        in_flight = 3 * tile + tile_m * 128
    # Quants; scales and minima; and the results of a warp.
    shared = max(shared + 2 * 128 * 4 * planes, threads // 32 * 32 * 36 * 4)
    of_precision = "" if backward else f"_{precision}"
    name = f"gemm_{q}_{form}{'_interleaved' if interleaved else ''}{of_precision}_{tile_m}"
    product = Launch(
        name, tiles(tile_m) * splits, threads, **quantised_work(m, n, k, format, rows, columns), shared=shared, pipe="half",
        operations=parts * padded(m, n, k, tile_m, 128), in_flight=in_flight, forced=forced,
    )  # fmt: skip
    scales = [] if backward else [Launch("scale_rows", ceil_div(m, 8), 256, bytes=4 * (m * k + m), flops=m * k, in_flight=256 * 16)]
    return [*scales, product, *sum_splits(m, n, splits)]


def launch_matmul_rows(target, kernel, format, m, rows, columns, precision="exact"):
    if is_quantised(format):
        if m == 1 and not format.endswith("_units"):
            return [gemv_quantised_rows(target, [rows], columns, format)]
        return gemm_quantised(target, kernel, m, rows, columns, rows, columns, format, "rows", precision)
    if m <= GEMV_TOKENS:
        return gemv_rows(target, m, rows, columns, format)
    if format == "f32":
        return gemm_f32(target, kernel, m, rows, columns, False, True)
    return gemm_half(target, kernel, m, rows, columns, format, "rows", precision)


def launch_matmul_units(target, kernel, format, m, rows, columns, precision="exact"):
    if is_quantised(format):
        if m == 1 and format.endswith("_units"):
            return gemv_quantised_units(target, rows, columns, format)
        return gemm_quantised(target, kernel, m, columns, rows, rows, columns, format, "units", precision)
    if m <= GEMV_TOKENS:
        return gemv_units(target, m, columns, rows, format)
    if format == "f32":
        return gemm_f32(target, kernel, m, columns, rows, False, False)
    return gemm_half(target, kernel, m, columns, rows, format, "units", precision)


# Products with an epilogue. `bias` is 1 where there is one.

# Formats of which one token's products of the same input are one launch.
TOGETHER = ("f32", "f16", "bf16", "q8", "q4")


def finished(found, m, n, bias, activation=0, up=0):
    """A product [m, n] with its epilogue, which the last of its launches has."""
    if not (bias or activation):
        return found
    if found[-1].kernel == "gemm_f32_128":
        found = [*found, Launch("sum_splits", ceil_div(m * n, 256), 256, **numbers(2 * m * n, m * n), in_flight=256 * 4 * 2)]
    last = found[-1]
    more_bytes, more_flops = 4 * (n * bias + m * n * up), m * n * (bias + up + 10 * activation)
    return [*found[:-1], replace(last, bytes=last.bytes + more_bytes, flops=last.flops + more_flops)]


def launch_project_rows(target, kernel, format, m, rows, columns, bias, count=1, other_rows=0, precision="exact"):
    all_rows = [rows] + [other_rows] * (count - 1)
    if m > 1 or count < 2 or format not in TOGETHER:
        products = [launch_matmul_rows(target, kernel, format, m, n, columns, precision) for n in all_rows]
        return [launch for n, product in zip(all_rows, products) for launch in finished(product, m, n, bias)]
    if is_quantised(format):
        launch = gemv_quantised_rows(target, all_rows, columns, format)
        more = bias * sum(all_rows)
        return [replace(launch, bytes=launch.bytes + 4 * more, flops=launch.flops + more)]
    split = warps_a_row(target, sum(all_rows), columns, CHUNK[format][1])
    work = [product_work(1, n, columns, NUMBER_BYTES[format]) for n in all_rows]
    totals = {"bytes": sum(w["bytes"] for w in work) + 4 * bias * sum(all_rows), "flops": sum(w["flops"] for w in work) + bias * sum(all_rows)}
    blocks = sum(ceil_div(ceil_div(n, 4), 4 // split) for n in all_rows)
    return [Launch(f"gemv_each_{format}", blocks, 128, **totals, in_flight=128 * 16 * 4)]


def launch_project_units(target, kernel, format, m, rows, columns, bias, precision="exact"):
    return finished(launch_matmul_units(target, kernel, format, m, rows, columns, precision), m, columns, bias)


def launch_project_activated(target, kernel, format, m, rows, columns, bias, gated, precision="exact"):
    product = lambda: launch_matmul_rows(target, kernel, format, m, rows, columns, precision)
    if not gated:
        return finished(product(), m, rows, bias, activation=1)
    if m > 1 or format not in TOGETHER:
        return [*finished(product(), m, rows, bias), *finished(product(), m, rows, bias, activation=1, up=1)]
    work = {
        "bytes": 2 * matrix_bytes(format, rows, columns) + 4 * (columns + rows + 2 * bias * rows),
        "flops": 4 * rows * columns + 2 * bias * rows + 11 * rows,
    }
    if is_quantised(format):
        return [replace(gemv_quantised_rows(target, [rows, rows], columns, format, gated=True), **work)]
    split = warps_a_row(target, rows, columns, CHUNK[format][1])
    return [Launch(f"gemv_gated_{format}", ceil_div(ceil_div(rows, 4), 4 // split), 128, **work, in_flight=128 * 16 * 4)]


def weight_bytes(case):
    """Bytes of the stored matrices of a product."""
    sizes = case.sizes
    rows = {
        "matmul_rows": lambda: [sizes["rows"]],
        "matmul_units": lambda: [sizes["rows"]],
        "project_units": lambda: [sizes["rows"]],
        "project_rows": lambda: [sizes["rows"]] + [sizes.get("other_rows", 0)] * (sizes.get("count", 1) - 1),
        "project_activated": lambda: [sizes["rows"]] * (2 if sizes["gated"] else 1),
    }
    if case.operation not in rows:
        return 0
    return sum(matrix_bytes(sizes["format"], n, sizes["columns"]) for n in rows[case.operation]())


def cache_bytes(case):
    """Bytes of keys and values that a decoding step reads."""
    if case.operation != "attention" or case.sizes["queries"] > 8:
        return 0
    return 2 * 4 * case.sizes["batch"] * case.sizes["keys"] * case.sizes["groups"] * case.sizes["head_dim"]


def launch_matmul(target, kernel, m, n, k, transpose_a, transpose_b):
    if m <= GEMV_TOKENS and not transpose_a:
        return (gemv_rows if transpose_b else gemv_units)(target, m, n, k, "f32")
    return gemm_f32(target, kernel, m, n, k, transpose_a, transpose_b)


# Stored matrices.


def stored(format, table, count, flops=None):
    return {"bytes": table_bytes(format, table) + 4 * count, "flops": table if flops is None else flops}


def launch_embed(target, kernel, format, count, rows, columns):
    n = count * columns
    return [Launch("embed", ceil_div(n, 256), 256, **stored(format, n, n + count, 0), in_flight=table_bytes(format, 256))]


def launch_add_positions(target, kernel, format, batch, sequence, rows, columns):
    n = batch * sequence * columns
    work = stored(format, sequence * columns, 2 * n, n)
    return [Launch("add_positions", ceil_div(n, 256), 256, **work, in_flight=256 * 4 + table_bytes(format, 256))]


def launch_row_l1(target, kernel, format, rows, columns):
    return [Launch("row_l1", ceil_div(rows, 8), 256, **stored(format, rows * columns, rows), in_flight=table_bytes(format, 256 * 4))]


# Element by element.


def fours(name, len, count, flops):
    """A thread for every four numbers; `count` numbers of which all but the last are read."""
    read = max(count // max(len, 1) - 1, 1)
    return Launch(name, ceil_div(ceil_div(len, 4), 256), 256, **numbers(count, flops), in_flight=256 * 16 * read)


def launch_fill(target, kernel, len):
    return [fours("fill", len, len, 0)]


def launch_add(target, kernel, len):
    return [fours("add", len, 3 * len, 2 * len)]


def launch_scale(target, kernel, len):
    return [fours("scale", len, 2 * len, len)]


def launch_activate(target, kernel, len, gated):
    return [fours("activate_gated", len, 3 * len, 11 * len) if gated else fours("activate_plain", len, 2 * len, 10 * len)]


def launch_activate_backward(target, kernel, len, gated):
    if gated:
        return [replace(fours("activate_gated_backward", len, 5 * len, 13 * len), in_flight=256 * 16 * 3)]
    return [fours("activate_plain_backward", len, 3 * len, 11 * len)]


def launch_adamw(target, kernel, len):
    return [fours("adamw", len, 7 * len, 14 * len)]


def row_grid(m, n):
    columns = n // 4 if n % 4 == 0 else n
    return ceil_div(columns, 256) * min(m, 65535)


def launch_add_bias(target, kernel, m, n):
    return [Launch("add_bias", row_grid(m, n), 256, **numbers(2 * m * n + n, m * n), in_flight=256 * 32)]


def launch_gate_columns(target, kernel, m, units, width):
    n = units * width
    return [Launch("gate_columns", row_grid(m, n), 256, **numbers(2 * m * n + units, m * n), in_flight=256 * 32)]


# Sums over rows.


def column_parts(m, n):
    """Blocks, and blocks of rows."""
    stripes = ceil_div(n, 32)
    parts = min(max(512 // max(stripes, 1), 1), max(ceil_div(m, 64), 1))
    parts = ceil_div(m, max(ceil_div(m, parts), 1))
    return stripes * parts, parts


def column_finish(parts, n):
    return Launch("column_finish", ceil_div(n, 256), 256, **numbers((parts + 2) * n, parts * n), in_flight=256 * 16)


def column_sums(m, n):
    blocks, parts = column_parts(m, n)
    return [Launch("column_sums", blocks, 256, **numbers((m + parts) * n, m * n), in_flight=256 * 16), column_finish(parts, n)]


def launch_bias_backward(target, kernel, m, n):
    return column_sums(m, n)


def launch_gate_backward(target, kernel, m, units, width):
    n = units * width
    blocks, parts = column_parts(m, n)
    products = Launch("column_products", blocks, 256, **numbers((2 * m + parts) * n, 2 * m * n), in_flight=256 * 32)
    finish = numbers(parts * n + 2 * units, parts * n)
    return [products, Launch("column_finish_units", ceil_div(units * 32, 256), 256, **finish, in_flight=256 * 4)]


# Norms, rotary, attention.


def norm_shape(m, d, name):
    if d <= 1024 and m >= 32:
        return f"{name}_warp", ceil_div(m * 32, 256)
    return f"{name}_block", m


def launch_norm(target, kernel, m, d):
    name, blocks = norm_shape(m, d, "norm")
    return [Launch(name, blocks, 256, **numbers(2 * m * d + 2 * d, 8 * m * d), in_flight=256 * 32)]


def launch_norm_backward(target, kernel, m, d, parameters):
    name, blocks = norm_shape(m, d, "norm_backward")
    found = [Launch(name, blocks, 256, **numbers(4 * m * d + d + 2 * m, 20 * m * d), in_flight=256 * 64)]
    if parameters:
        blocks, parts = column_parts(m, d)
        weight = numbers((2 * m + parts) * d + 2 * m, 4 * m * d)
        found += [Launch("norm_weight_columns", blocks, 256, **weight, in_flight=256 * 32), column_finish(parts, d), *column_sums(m, d)]
    return found


def launch_rotate(target, kernel, batch, sequence, heads, head_dim):
    half, rows = head_dim // 2, batch * sequence
    together = 8 if rows * half * ceil_div(heads, 8) >= 64 * 1024 else 1
    pairs = rows * heads * half
    return [Launch("rotate", ceil_div(rows * half * ceil_div(heads, together), 128), 128, **numbers(4 * pairs + half, 6 * pairs), in_flight=128 * 16)]


def launch_cache_tokens(target, kernel, sequence, heads, groups, head_dim, capacity):
    half, width = head_dim // 2, groups * head_dim
    threads = sequence * (heads * half + groups * (head_dim - half) + width)
    work = numbers(sequence * (4 * heads * half + 4 * width) + half, 6 * sequence * (heads + groups) * half)
    return [Launch("cache_tokens", ceil_div(threads, 128), 128, **work, in_flight=128 * 8)]


@dataclass(frozen=True)
class Attention:
    batch: int
    queries: int
    keys: int
    heads: int
    groups: int
    head_dim: int

    def rows(self):
        return self.batch * self.queries * self.heads

    def slices(self):
        width = 64 if self.head_dim <= 64 else 128
        return width, ceil_div(self.head_dim, width)

    def work(self, products, query_passes, key_passes):
        first = self.keys - self.queries + 1
        pairs = (self.queries * first + self.queries * (self.queries - 1) // 2) * self.batch * self.heads
        count = query_passes * self.rows() * self.head_dim + key_passes * self.batch * self.keys * self.groups * self.head_dim
        return numbers(count, 2 * products * pairs * self.head_dim)

    def padded(self, products):
        """Operations of products on whole tiles of 64 by 64, those above the diagonal left out."""
        query_tiles, behind = ceil_div(self.queries, 64), self.keys - self.queries
        key_tiles = sum(ceil_div(behind + min((tile + 1) * 64, self.queries), 64) for tile in range(query_tiles))
        return 2 * products * self.batch * self.heads * key_tiles * 64 * 64 * ceil_div(self.head_dim, 64) * 64


# Two chunks of 64 rows by 32 dimensions, in f32.
ATTENTION_CHUNKS = 2 * 64 * 32 * 4


def launch_attention(target, kernel, batch, queries, keys, heads, groups, head_dim):
    shape = Attention(batch, queries, keys, heads, groups, head_dim)
    if queries > 8:
        width, slices = shape.slices()
        blocks = slices * heads * batch * ceil_div(queries, 64)
        return [Launch(f"attention_prefill_{width}", blocks, 256, **shape.work(2, 2, 2), operations=shape.padded(2), in_flight=ATTENTION_CHUNKS)]
    each = batch * groups
    wanted = ceil_div(256, each)
    part_keys = min(max(ceil_div(ceil_div(keys, wanted), 32) * 32, 64), 256)
    parts = ceil_div(keys, part_keys)
    launch = Launch("attention_decode", parts * each, 128, **shape.work(2, 2, 2), in_flight=128 * 16 * 4)
    if parts == 1:
        return [launch]
    merged = parts * shape.rows() * (head_dim + 2)
    # Rows of a group go by 8: a warp at a time finds the shares of a row's parts, in three rounds of 32; then a thread takes four numbers.
    rows = ceil_div(heads, groups) * queries
    numbers_a_thread = ceil_div(min(rows, 8) * ceil_div(head_dim, 4), 128)
    waits = ceil_div(min(rows, 8), 4) * 3 * ceil_div(parts, 32) + numbers_a_thread * ceil_div(parts, 4)
    return [replace(launch, bytes=launch.bytes + 8 * merged, flops=launch.flops + 2 * merged, joins=ceil_div(rows, 8) * waits)]


def launch_attention_backward(target, kernel, batch, queries, keys, heads, groups, head_dim):
    shape = Attention(batch, queries, keys, heads, groups, head_dim)
    tiles, (width, slices) = batch * ceil_div(queries, 64), shape.slices()
    key_slices = ceil_div(head_dim, 64)
    # Two products make the scores, in every slice of the output again; the others fill it.
    launch = lambda name, blocks, slices, products, queries, keys: Launch(
        name, blocks, 256, **shape.work(products, queries, keys), operations=shape.padded(2 * slices + products - 2), in_flight=ATTENTION_CHUNKS
    )
    return [
        launch("attention_statistics", heads * tiles, 1, 2, 2, 2),
        launch(f"attention_dq_{width}", slices * heads * tiles, slices, 3, 3, 2),
        launch("attention_dkv", key_slices * groups * tiles, key_slices, 4, 2, 4),
    ]


# Input, output, training.


def launch_patches(target, kernel, batch, window, patch, stride):
    count = (window - patch) // stride + 1
    n = batch * count * patch
    return [Launch("patches", ceil_div(n, 256), 256, **numbers(n + batch * window, 0), in_flight=256 * 8)]


def launch_mean_pool(target, kernel, batch, sequence, d):
    work = numbers(batch * (sequence + 1) * d, batch * sequence * d)
    return [Launch("mean_pool", ceil_div(d, 32) * batch, 256, **work, in_flight=256 * 16)]


def launch_mean_pool_backward(target, kernel, batch, sequence, d):
    n = batch * sequence * d
    return [Launch("mean_pool_backward", ceil_div(n, 256), 256, **numbers(n + batch * d, n), in_flight=256 * 8)]


def launch_embed_backward(target, kernel, count, rows, columns):
    work = numbers(3 * count * columns + count, count * columns)
    return [Launch("embed_backward", count * ceil_div(columns, 256), 256, **work, in_flight=256 * 12)]


def launch_positions_backward(target, kernel, batch, sequence, columns):
    n = sequence * columns
    return [Launch("positions_backward", ceil_div(n, 256), 256, **numbers((batch + 2) * n, batch * n), in_flight=256 * 16)]


def launch_softmax(target, kernel, m, n):
    return [Launch("softmax", m, 256, **numbers(2 * m * n, 20 * m * n), in_flight=256 * 4)]


def launch_cross_entropy(target, kernel, m, n, gradient):
    if gradient:
        rows = Launch("cross_entropy_gradient", m, 256, **numbers(2 * m * n + 3 * m, 20 * m * n), in_flight=256 * 16)
    else:
        rows = Launch("cross_entropy", m, 256, **numbers(m * n + 3 * m, 10 * m * n), in_flight=256 * 16)
    return [rows, Launch("cross_entropy_sum", 1, 256, **numbers(2 * m, m), in_flight=256 * 8)]


def launch_sum_of_squares(target, kernel, len):
    parts = min(ceil_div(len, 8192), 1024)
    parts += parts % 2
    pairs = Launch("sum_pairs", 1, 256, **numbers(2 * parts, parts), in_flight=256 * 16)
    return [Launch("sum_of_squares", parts, 256, **numbers(len + 2 * parts, 2 * len), in_flight=256 * 16), pairs]


def launch_residual_change(target, kernel, m, d):
    rows = Launch("residual_change", ceil_div(m * 32, 256), 256, **numbers(2 * m * d + 4 * m, 12 * m * d), in_flight=256 * 16)
    return [rows, Launch("sum_pairs", 1, 256, **numbers(4 * m, 2 * m), in_flight=256 * 16)]
