"""The figures of results.json in a few lines, beside what a copy or a read reaches on the same device and what PyTorch takes."""


def table(rows):
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows)


def peers(results):
    """{(case without its use, variant): µs} of PyTorch."""
    lines = results.get("torch")
    return {(line["case"], line["variant"]): line["median_us"] for line in lines if "median_us" in line} if isinstance(lines, list) else {}


def kernel_rows(results):
    ceiling = max(results.get("ceilings", {}).get(name) or 0 for name in ("copy", "read"))
    by_torch = peers(results)
    rows = [("case", "kernel", "µs", "GB/s", "of copy or read", "TFLOP/s", "PyTorch µs")]
    for line in results.get("kernels", []):
        if line["what"] != "case":
            rows.append((line.get("case", line["what"]), line.get("reason", "cut short"), "", "", "", "", ""))
            continue
        beside = [f"{variant} {us:.1f}" for (case, variant), us in by_torch.items() if case == line["case"]]
        for number, kernel in enumerate(line["kernels"]):
            share = f"{100 * kernel['gb_per_s'] / ceiling:.0f} %" if ceiling else ""
            first = (line["case"], ", ".join(beside)) if number == 0 else ("", "")
            figures = (f"{kernel['median_us']:.2f}", f"{kernel['gb_per_s']:.0f}", share, f"{kernel['tflop_per_s']:.2f}")
            rows.append((first[0], kernel["name"], *figures, first[1]))
    return rows


def pass_rows(results):
    copy = results.get("ceilings", {}).get("copy") or 0
    rows = [("pass", "launches", "stream p50 ms", "p99", "graph p50 ms", "p99", "weights GB/s", "of copy")]
    for line in results.get("passes", []):
        if line["what"] != "pass":
            rows.append((line["case"], line["reason"], "", "", "", "", "", ""))
            continue
        times = [f"{line[name]:.3f}" for name in ("stream_p50_ms", "stream_p99_ms", "graph_p50_ms", "graph_p99_ms")]
        share = f"{100 * line['graph_gb_per_s'] / copy:.0f} %" if copy else ""
        rows.append((line["name"], str(line["launches"]), *times, f"{line['graph_gb_per_s']:.0f}", share))
    return rows


def model_rows(results):
    copy = results.get("ceilings", {}).get("copy") or 0
    rows = [("model", "p50 ms", "p99 ms", "a second", "weights GB/s", "of copy", "fixed ms")]
    for name, found in results.get("models", {}).items():
        p50, rate = found["p50_ms"], found["weight_gb_per_s"]
        # What is left when the weights have been read at the speed of a copy.
        fixed = p50 * (1 - rate / copy) if copy else 0
        share = f"{100 * rate / copy:.0f} %" if copy else ""
        rows.append((name, f"{p50:.3f}", f"{found['p99_ms']:.3f}", f"{found['per_second']:.0f}", f"{rate:.0f}", share, f"{fixed:.3f}"))
    return rows


def summary(results):
    """The text that is printed."""
    if "wrong" in results:
        failed = next((step for step in results["steps"] if "failed" in step), {})
        return f"{results['wrong']}\n{failed.get('said', '')}"
    parts = [str((results.get("device") or {}).get("name", "no device"))]
    parts += [f"{name}: {lines[-1] if lines else 'nothing said'}" for name, lines in results.get("correctness", {}).items()]
    parts += [f"{name}: {value}" for name, value in results.get("ceilings", {}).items()]
    parts += ["", table(kernel_rows(results)), "", table(pass_rows(results)), "", table(model_rows(results)), ""]
    parts += [f"FAILED {step['step']}: {step['failed']}" for step in results["steps"] if "failed" in step]
    parts += [f"skipped {step['step']}: {step['skipped']}" for step in results["steps"] if "skipped" in step]
    parts.append(f"{results.get('seconds', '?')} s")
    return "\n".join(parts)
