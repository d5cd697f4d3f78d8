"""Serves models on cuda:0 and compares the answers with direct calls of the same archives, on the GPU and on the CPU.

Called by run.sh. Exits 1 at the first difference. Times are medians over REST with binary tensors, one request at a time.
"""

import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import wave

import numpy as np
import torch

DEMO = pathlib.Path("target/demo")
RUNS = 50


class Server:
    """The runtime, serving one configuration on free ports of this machine."""

    def __init__(self, binary, config, *arguments):
        self.folder = tempfile.TemporaryDirectory()
        file = pathlib.Path(self.folder.name) / "model.yaml"
        file.write_text(json.dumps(config))  # JSON is YAML
        addresses = [f"--{port}-address=127.0.0.1:0" for port in ("http", "grpc", "metrics")]
        self.process = subprocess.Popen(
            [binary, "serve", "-f", str(file), "--log-format=json", *addresses, *arguments],
            stderr=subprocess.PIPE,
            text=True,
            # As the image sets it.
            env=dict(os.environ, LD_LIBRARY_PATH=str(pathlib.Path(binary).parent.parent / "lib")),
        )
        self.log = []
        listening = self.wait_for("listening")
        self.address, self.metrics = listening["http"], listening["metrics"]
        self.wait_for("ready")

    def wait_for(self, message):
        for line in self.process.stderr:
            self.log.append(line)
            entry = json.loads(line)
            if entry.get("message") == message:
                return entry
        sys.exit("the runtime ended:\n" + "".join(self.log))

    def device(self):
        return next(json.loads(line)["device"] for line in self.log if '"device"' in line)

    def ask(self, model, output, **inputs):
        described, blobs = [], []
        for name, value in inputs.items():
            datatype = {"float32": "FP32", "int64": "INT64"}[str(value.dtype)]
            blobs.append(np.ascontiguousarray(value).tobytes())
            described.append({"name": name, "shape": list(value.shape), "datatype": datatype,
                              "parameters": {"binary_data_size": len(blobs[-1])}})
        head = json.dumps({"inputs": described, "parameters": {"binary_data_output": True}}).encode()
        request = urllib.request.Request(f"http://{self.address}/v2/models/{model}/infer", head + b"".join(blobs),
                                         {"Inference-Header-Content-Length": str(len(head))})
        with urllib.request.urlopen(request) as answer:
            size = int(answer.headers["Inference-Header-Content-Length"])
            body = answer.read()
        shape = next(o["shape"] for o in json.loads(body[:size])["outputs"] if o["name"] == output)
        return np.frombuffer(body[size:], dtype=np.float32).reshape(shape)

    def inside(self):
        """Milliseconds that all requests until now took inside the server: in all, and on the device with its copies."""
        with urllib.request.urlopen(f"http://{self.metrics}/metrics") as answer:
            lines = [line.rsplit(" ", 1) for line in answer.read().decode().splitlines() if not line.startswith("#")]
        of = lambda *names: sum(float(value) for name, value in lines if name.split("{")[0] in names) / 1000
        return np.array([of("nv_inference_request_duration_us"),
                         of(*(f"nv_inference_compute_{part}_duration_us" for part in ("input", "infer", "output")))])

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.communicate(timeout=60)
        self.folder.cleanup()


def recording(name):
    with wave.open(str(DEMO / name)) as file:
        raw = np.frombuffer(file.readframes(file.getnframes()), dtype="<i2")
    audio = raw[: len(raw) // 3 * 3].reshape(-1, 3).astype(np.float32).mean(axis=1) / 32768
    return audio[: len(audio) // 512 * 512][np.newaxis].astype(np.float32)


def speech(binary, device):
    path = str((DEMO / "silero_vad.jit").absolute())
    config = {"source": {"uri": "file://" + path}, "model": {"name": "vad", "method": "audio_forward", "outputs": [{"name": "speech"}]}}
    with Server(binary, config, f"--device={device}", "--shutdown-delay=0s") as server:
        assert server.device() == device, server.device()
        rate = np.array([16000], dtype=np.int64)
        return {name: server.ask("vad", "speech", x=recording(name), sr=rate)[0] for name in ("Front_Center.wav", "Noise.wav")}


def network():
    """A convolutional network with fixed random weights, traced on the CPU."""
    torch.manual_seed(0)
    layers, width = [], 3
    for out in (64, 128, 256, 512):
        layers += [torch.nn.Conv2d(width, out, 3, stride=2, padding=1), torch.nn.BatchNorm2d(out), torch.nn.ReLU()]
        width = out
    model = torch.nn.Sequential(*layers, torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(width, 1000)).eval()
    return torch.jit.trace(model, torch.zeros(1, 3, 224, 224))


def images(binary):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "network.pt")
        network().save(path)
        direct = torch.jit.load(path, map_location="cuda:0").eval()
        config = {"source": {"uri": "file://" + path}, "model": {
            "name": "network", "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 3, 224, 224]}],
            "batching": {"maxBatchSize": 32}}}
        with Server(binary, config, "--device=auto", "--shutdown-delay=0s") as server:
            assert server.device() == "cuda:0", server.device()
            for batch in (1, 8, 32):
                x = np.random.default_rng(batch).standard_normal((batch, 3, 224, 224), dtype=np.float32)
                with torch.inference_mode():
                    expected = direct(torch.from_numpy(x).cuda()).cpu().numpy()
                answer = server.ask("network", "output", input=x)
                difference = float(np.abs(answer - expected).max())
                print(f"network, batch {batch}: largest difference from a direct call on the GPU {difference:.3g}")
                assert difference < 1e-4
                before = server.inside()
                served = timed(lambda: server.ask("network", "output", input=x))
                whole, device = (server.inside() - before) / RUNS
                print(f"  served {served:.2f} ms as the client sees it, {whole:.2f} ms inside the server, {device:.2f} ms of them on the "
                      f"device with copies; direct {timed(lambda: direct(torch.from_numpy(x).cuda()).cpu()):.2f} ms")


def timed(call):
    times = []
    for _ in range(RUNS):
        start = time.perf_counter()
        with torch.inference_mode():
            call()
        times.append(1000 * (time.perf_counter() - start))
    return statistics.median(times)


def main():
    binary = sys.argv[1]
    on_cpu, on_gpu = speech(binary, "cpu"), speech(binary, "cuda:0")
    module = torch.jit.load(str(DEMO / "silero_vad.jit"), map_location="cuda:0").eval()
    for name, answer in on_gpu.items():
        with torch.inference_mode():
            direct = module.audio_forward(torch.from_numpy(recording(name)).cuda(), 16000).cpu().numpy()[0]
        print(f"{name}: {len(answer)} windows, max {answer.max():.5f}, mean {answer.mean():.3f}; largest difference from a direct call "
              f"on the GPU {np.abs(answer - direct).max():.3g}, from the CPU's answers {np.abs(answer - on_cpu[name]).max():.3g}")
        assert np.abs(answer - direct).max() < 1e-6 and np.abs(answer - on_cpu[name]).max() < 1e-3
    images(binary)
    print("passed: speech on cuda:0, a batched network on cuda:0")


if __name__ == "__main__":
    main()
