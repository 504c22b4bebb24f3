"""Times PyTorch (and so cuBLAS) on the shapes of benches/cuda_cases.txt: gpu_torch.py CASES [--seconds N]; a JSON line a case and variant.

Timed as kernels/benches/cuda_kernels times its own: between two events, each run after a buffer larger than the second-level cache was
read, median of 20.
"""

import json
import statistics
import sys
import time

import torch
import torch.nn.functional as F

RUNS = 20
FLUSH_NUMBERS = 32 << 20
DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16, "f32": torch.float32}


def cases(path):
    with open(path) as file:
        for line in file:
            if line.strip() and not line.startswith("#"):
                _use, operation, *sizes = line.split()
                pairs = dict(size.split("=") for size in sizes)
                yield line.strip(), operation, {name: int(value) if value.isdigit() else value for name, value in pairs.items()}


def variants(operation, sizes):
    """(name, what to run) of what PyTorch has for an operation."""
    random = lambda *shape, dtype=torch.float32: torch.randn(*shape, device="cuda", dtype=dtype)
    if operation in ("matmul_rows", "matmul_units"):
        dtype = DTYPES[sizes["format"].split("_")[0]]
        m, rows, columns = sizes["m"], sizes["rows"], sizes["columns"]
        w = random(rows, columns, dtype=dtype)
        x = random(m, columns if operation == "matmul_rows" else rows, dtype=dtype)
        yield str(dtype).split(".")[1], (lambda: x @ w.T) if operation == "matmul_rows" else (lambda: x @ w)
    elif operation == "matmul":
        m, n, k = sizes["m"], sizes["n"], sizes["k"]
        a = random(k, m).T if sizes["transpose_a"] else random(m, k)
        b = random(n, k).T if sizes["transpose_b"] else random(k, n)
        yield "float32", lambda: a @ b
        yield "tf32", lambda: a @ b
    elif operation == "attention":
        batch, queries, keys, heads, groups, width = (sizes[name] for name in ("batch", "queries", "keys", "heads", "groups", "head_dim"))
        for dtype in (torch.float32, torch.bfloat16):
            q, k, v = random(batch, heads, queries, width, dtype=dtype), *(random(batch, heads, keys, width, dtype=dtype) for _ in range(2))
            # With groups, keys are repeated for their heads beforehand: not every version takes groups.
            causal = queries == keys
            yield f"{str(dtype).split('.')[1]}{' keys repeated' if groups != heads else ''}", lambda q=q, k=k, v=v: F.scaled_dot_product_attention(
                q, k, v, is_causal=causal
            )
    elif operation == "norm":
        x, w = random(sizes["m"], sizes["d"]), random(sizes["d"])
        yield "float32", lambda: F.layer_norm(x, (sizes["d"],), w, w)
    elif operation == "activate" and not sizes["gated"]:
        x = random(sizes["len"])
        yield "float32", lambda: F.gelu(x, approximate="tanh")


def median_us(work, flush):
    work()
    torch.cuda.synchronize()
    times = []
    for _ in range(RUNS):
        flush.square().sum()
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        work()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end) * 1e3)
    return statistics.median(times)


def main():
    limit = float(sys.argv[3]) if len(sys.argv) > 3 else 600
    flush = torch.zeros(FLUSH_NUMBERS, device="cuda")
    started = time.monotonic()
    print(json.dumps({"what": "torch", "version": torch.__version__, "cuda": torch.version.cuda}), flush=True)
    for case, operation, sizes in cases(sys.argv[1]):
        if time.monotonic() - started > limit:
            print(json.dumps({"what": "cut", "before": case}))
            break
        try:
            for name, work in variants(operation, sizes):
                torch.backends.cuda.matmul.allow_tf32 = name == "tf32"
                print(json.dumps({"what": "case", "case": case, "variant": name, "median_us": median_us(work, flush)}), flush=True)
        except (RuntimeError, torch.cuda.OutOfMemoryError) as error:
            print(json.dumps({"what": "failed", "case": case, "reason": str(error)[:300]}), flush=True)


if __name__ == "__main__":
    main()
