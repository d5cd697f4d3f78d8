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
import urllib.error
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


class Rows(torch.nn.Module):
    """Looks rows up, which on a GPU a kernel does: an index that is not there stops the device for good."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(2, 2)

    def forward(self, i):
        return self.table(i)


def lost(binary):
    with tempfile.TemporaryDirectory() as folder:
        path, message = os.path.join(folder, "rows.pt"), pathlib.Path(folder) / "termination-log"
        message.touch()
        torch.jit.script(Rows().eval()).save(path)
        config = {"source": {"uri": "file://" + path},
                  "model": {"name": "rows", "inputs": [{"name": "i", "datatype": "INT64", "shape": [-1]}]}}
        with Server(binary, config, "--device=cuda:0", f"--termination-message={message}") as server:
            server.ask("rows", "output", i=np.array([0, 1], dtype=np.int64))
            try:
                server.ask("rows", "output", i=np.array([0, 7], dtype=np.int64))
                sys.exit("an index that is not there was answered")
            except urllib.error.HTTPError as error:
                print(f"a device-side assert: HTTP {error.code}, {error.read().decode().strip()}")
                assert error.code >= 500, error.code
            code = server.process.wait(timeout=60)
            print(f"  the program ended with {code} and said: {message.read_text().strip()}")
            assert code == 1 and "the device is lost" in message.read_text()


class State(torch.nn.Module):
    """A recurrent network that gives its state back, or keeps it."""

    def __init__(self, keeps: bool):
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 4, batch_first=True)
        self.keeps = keeps
        self.h = torch.zeros(1, 1, 4)
        self.c = torch.zeros(1, 1, 4)

    def forward(self, x):
        y, (h, c) = self.lstm(x, (self.h, self.c))
        if self.keeps:
            self.h, self.c = h, c
        return y, h, c


def models():
    """Names of models as people have them, the models, and whether they keep something."""
    nn = torch.nn
    x = torch.zeros(1, 8, 16)
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(16, 2, 32, batch_first=True), 2, enable_nested_tensor=False).eval()
    yield "a traced network", network(), False
    yield "a scripted transformer encoder", torch.jit.script(encoder), False
    yield "a traced transformer encoder", torch.jit.trace(encoder, x, check_trace=False), False
    yield "a scripted attention", torch.jit.script(nn.MultiheadAttention(16, 2, batch_first=True).eval()), False
    yield "a scripted LSTM", torch.jit.script(nn.LSTM(16, 8, 2, bidirectional=True, batch_first=True).eval()), False
    yield "a scripted GRU", torch.jit.script(nn.GRU(16, 8, batch_first=True).eval()), False
    yield "an LSTM that gives its state back", torch.jit.script(State(False).eval()), False
    yield "an LSTM that keeps its state", torch.jit.script(State(True).eval()), True
    norms = nn.Sequential(nn.Conv1d(8, 8, 3), nn.BatchNorm1d(8), nn.InstanceNorm1d(8, track_running_stats=True), nn.GroupNorm(2, 8), nn.Dropout())
    yield "scripted normalisations", torch.jit.script(norms.eval()), False
    yield "normalisations traced while training", torch.jit.trace(norms.train(), x, check_trace=False), True
    try:
        import torchvision
        for name in ("resnet18", "mobilenet_v3_small", "vit_b_16"):
            yield f"a scripted {name}", torch.jit.script(getattr(torchvision.models, name)().eval()), False
    except ImportError:
        print("no torchvision here: its models are left out")
    try:
        import transformers
        bert = transformers.BertModel(transformers.BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64), add_pooling_layer=True)
        ids = torch.zeros(1, 8, dtype=torch.long)
        yield "a traced BERT", torch.jit.trace(bert.eval(), (ids, torch.ones_like(ids)), strict=False), False
    except ImportError:
        print("no transformers here: BERT is left out")


def ordinary(binary):
    with tempfile.TemporaryDirectory() as folder:
        for name, module, keeps in models():
            path = os.path.join(folder, "model.pt")
            module.save(path)
            text = subprocess.run([binary, "inspect", path], capture_output=True, text=True, check=True).stdout
            print(f"{name}: {'stateful' if 'stateful:' in text else 'keeps nothing'}")
            assert ("stateful:" in text) == keeps, text


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
    ordinary(binary)
    lost(binary)
    print("passed: speech and a batched network on cuda:0, the state of models as people have them, a lost device")


if __name__ == "__main__":
    main()
