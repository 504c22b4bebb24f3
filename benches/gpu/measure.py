"""The steps of benches/gpu.sh: each a program with a time limit, all results in one JSON file. No packages are needed.

A step that fails or runs out of time is recorded and the others go on, except that nothing is timed on a device that computes wrongly.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from models import llama, recordings
from summary import summary

HERE = Path(__file__).resolve().parent
# All steps together; the rest of 8 minutes is for what is between them.
TOTAL_S = 460
# A language model of a billion parameters in bf16 takes its bytes three times on disk for a while: checkpoint, artifact, scratch.
LARGE_DISK_BYTES = 9 << 30
LARGE_DEVICE_BYTES = 6 << 30
# Where less is left, a language model is not quantised as well.
QUANTISING_S = 130


class Wrong(Exception):
    """The device does not compute what it should."""


class Measurement:
    def __init__(self, small):
        self.small = small
        self.started = time.monotonic()
        self.steps = []
        self.results = {"commit": (HERE / "commit.txt").read_text().strip(), "dry_run": small, "steps": self.steps}

    def left_s(self):
        return TOTAL_S - (time.monotonic() - self.started)

    def run(self, name, command, limit_s, environment=None):
        """Runs a command; its standard output, or None where it failed or ran out of time."""
        left = self.left_s()
        step = {"step": name, "command": " ".join(Path(word).name if os.sep in str(word) else str(word) for word in command)}
        self.steps.append(step)
        if left < 5:
            step["failed"] = "no time was left"
            return None
        limit, started = min(limit_s, left), time.monotonic()
        print(f"{name} ...", flush=True)
        try:
            done = subprocess.run(
                [str(word) for word in command],
                capture_output=True,
                text=True,
                timeout=limit,
                env={**os.environ, **(environment or {})},
            )
            output, error, code = done.stdout, done.stderr, done.returncode
        except subprocess.TimeoutExpired as late:
            output = late.stdout.decode(errors="replace") if late.stdout else ""
            error, code = f"it was stopped after {limit:.0f} s", None
        except OSError as missing:
            output, error, code = "", str(missing), None
        step["seconds"] = round(time.monotonic() - started, 2)
        if code == 0:
            return output
        step["failed"] = f"exit code {code}" if code is not None else error
        step["said"] = (output[-2000:] + "\n" + error[-2000:]).strip()
        print(f"  FAILED: {step['failed']}", flush=True)
        # Whole lines of JSON were measured before.
        return output if code is None and output.startswith("{") else None

    def json_lines(self, name, command, limit_s, environment=None):
        lines = (self.run(name, command, limit_s, environment) or "").splitlines()
        found = []
        for line in lines:
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return found

    def facts(self):
        query = "name,driver_version,memory.total,clocks.max.sm,clocks.max.mem,power.limit"
        gpu = self.run("what the machine is", ["nvidia-smi", f"--query-gpu={query}", "--format=csv"], 20) if shutil.which("nvidia-smi") else None
        self.results["machine"] = {"nvidia_smi": gpu, "system": platform.platform(), "processors": os.cpu_count()}

    def correctness(self):
        """Conformance and parity, in f32, f16 and bf16."""
        tests = [
            ("conformance", "cuda_conformance", [], 60),
            ("every product kernel", "cuda_products", [], 90),
            ("parity with PyTorch, f32, f16, bf16", "cuda", ["cuda_parity"], 120),
        ]
        self.results["correctness"] = {}
        for name, program, words, limit in tests:
            if self.small and program == "cuda_products":
                continue
            folder = HERE / "parity"
            environment = {"ESPALIER_PARITY": str(self.few_checkpoints() if self.small else folder), "CI": "true"}
            output = self.run(name, [HERE / "bin" / program, "--nocapture", "--test-threads=1", *words], limit, environment)
            said = [line for line in (output or "").splitlines() if "launches" in line or "compared" in line or "test result" in line]
            self.results["correctness"][name] = said
            if output is None or not any("ok." in line and " 0 passed" not in line for line in said):
                raise Wrong(name)

    def few_checkpoints(self):
        few = Path(self.scratch) / "parity"
        if not few.exists():
            shutil.copytree(HERE / "parity/llama-gqa2", few / "llama-gqa2")
        return few

    def kernels(self):
        bench, small = HERE / "bin/cuda_kernels", ["--small"] if self.small else []
        ceilings = self.json_lines("ceilings", [bench, "--ceilings", *small], 30)
        self.results["device"] = next((line for line in ceilings if line["what"] == "device"), None)
        self.results["ceilings"] = {line["name"]: line.get("gb_per_s", line.get("us")) for line in ceilings if line["what"] == "ceiling"}
        few = ["--iterations", "2"] if self.small else []
        cases = self.json_lines("kernels", [bench, "--seconds", "70", *small, *few], 85)
        self.results["kernels"] = [line for line in cases if line["what"] != "device"]
        passes = self.json_lines("passes, on the stream and as graphs", [bench, "--passes", *small], 60)
        self.results["passes"] = [line for line in passes if line["what"] != "device"]
        if self.small or not self.has_torch():
            self.results["torch"] = "PyTorch is not installed for python3, so nothing was timed beside it"
            return
        peer = [sys.executable, HERE / "peers/gpu_torch.py", HERE / "cuda_cases.txt", "--seconds", "45"]
        self.results["torch"] = self.json_lines("PyTorch", peer, 60)

    def has_torch(self):
        probe = [sys.executable, "-c", "import torch; assert torch.cuda.is_available(); print(torch.__version__)"]
        return self.run("whether PyTorch is there", probe, 30) is not None

    def espalier(self, name, words, limit_s, as_json=False):
        output = self.run(name, [HERE / "bin/espalier", *words], limit_s)
        return json.loads(output) if output is not None and as_json else output

    def bench(self, name, model, words=()):
        count = 4 if self.small else 300
        found = self.espalier(name, ["bench", model, "--engine", "cuda", "--count", count, "--json", *words], 40, as_json=True)
        if found is not None:
            self.results["models"][name] = found

    def signal_models(self, scratch):
        data, dense, pruned = scratch / "recordings", scratch / "dense.esp", scratch / "pruned.esp"
        recordings(data)
        size = ["--layers", "2", "--width", "32", "--heads", "2", "--channels", "64"] if self.small else ["--size", "paper"]
        train = ["train", "--data", data, "-o", dense, "--engine", "cuda", "--batch", "8", *size]
        if self.espalier("train the signal network", [*train, "--steps", "2"], 60) is None:
            return
        self.bench("window, dense, f32", dense)
        prune = ["prune", dense, "-o", pruned, "--data", data, "--engine", "cuda", "--ratio", "2" if self.small else "6"]
        if self.espalier("prune it", [*prune, "--steps", "1,1,1", "--windows", "8", "--batch", "8"], 60) is not None:
            self.bench("window, pruned, f32", pruned)

    def language_models(self, scratch):
        sizes = ["small"] if self.small else ["0.11 B", "1.2 B"]
        for size in sizes:
            room = shutil.disk_usage(scratch).free
            device = self.results.get("device") or {}
            if size == "1.2 B" and (room < LARGE_DISK_BYTES or device.get("free_bytes", 0) < LARGE_DEVICE_BYTES):
                reason = f"{room} bytes of disk or {device.get('free_bytes')} of the device are too few"
                self.steps.append({"step": f"token, {size}", "skipped": reason})
                continue
            checkpoint, artifact = scratch / "checkpoint", scratch / "language.esp"
            started = time.monotonic()
            print(f"a language model of {size} parameters, at random ...", flush=True)
            bytes_ = llama(checkpoint, size)
            self.steps.append({"step": f"write {size}", "seconds": round(time.monotonic() - started, 2), "bytes": bytes_})
            for dtype in ("bf16", "q8", "q4"):
                if dtype != "bf16" and self.left_s() < QUANTISING_S:
                    self.steps.append({"step": f"token, {size}, {dtype}", "skipped": f"{self.left_s():.0f} s of time are left"})
                elif self.espalier(f"import {size}, {dtype}", ["import", checkpoint, "-o", artifact, "--dtype", dtype], 90) is not None:
                    self.bench(f"token, {size}, {dtype}", artifact)
                artifact.unlink(missing_ok=True)
            shutil.rmtree(checkpoint)

    def everything(self):
        with tempfile.TemporaryDirectory(prefix="espalier-gpu-") as scratch:
            self.scratch = scratch
            self.facts()
            self.results["models"] = {}
            try:
                self.correctness()
            except Wrong as wrong:
                self.results["wrong"] = f"the device does not compute what it should ({wrong}); nothing was timed"
                return 1
            parts = [
                ("kernels", self.kernels),
                ("signal models", lambda: self.signal_models(Path(scratch))),
                ("language models", lambda: self.language_models(Path(scratch))),
            ]
            for name, part in parts:
                # Whatever is wrong with one, the others are still worth their time.
                try:
                    part()
                except Exception as broken:
                    self.steps.append({"step": name, "failed": f"{type(broken).__name__}: {broken}"})
        return 1 if any("failed" in step for step in self.steps) else 0


def main():
    parser = argparse.ArgumentParser(prog="benches/gpu.sh")
    parser.add_argument("--out", type=Path, default=HERE / "results.json")
    parser.add_argument("--dry-run", action="store_true")
    arguments = parser.parse_args()
    measurement = Measurement(arguments.dry_run)
    try:
        code = measurement.everything()
    finally:
        # What was measured before an interruption is kept.
        measurement.results["seconds"] = round(time.monotonic() - measurement.started, 1)
        arguments.out.write_text(json.dumps(measurement.results, indent=1) + "\n")
    print(f"\n{summary(measurement.results)}\n{arguments.out}")
    return code


if __name__ == "__main__":
    sys.exit(main())
