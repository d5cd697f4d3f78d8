"""Asks a served Silero VAD where there is speech in 48 kHz mono recordings, over REST and over gRPC, with Triton's stock client.

    python examples/silero_vad.py --http HOST:PORT --grpc HOST:PORT FILE.wav ...

Prints one answer a file; exits 1 when the two protocols disagree. With --json, prints the numbers for another program.
"""

import argparse
import json
import pathlib
import sys
import wave

import numpy as np
import tritonclient.grpc
import tritonclient.http

RATE = 16_000  # Hz, what the model takes
WINDOW = 512  # samples of one answer: 32 ms


def samples(path):
    """Mono samples between -1 and 1 at 16 kHz, cut to whole windows; shape [1, n], FP32."""
    with wave.open(str(path)) as recording:
        if (recording.getframerate(), recording.getnchannels(), recording.getsampwidth()) != (48_000, 1, 2):
            sys.exit(f"{path}: expected 48 kHz, mono, 16 bits")
        raw = np.frombuffer(recording.readframes(recording.getnframes()), dtype="<i2")
    thirds = raw[: len(raw) // 3 * 3].reshape(-1, 3).astype(np.float32)
    audio = thirds.mean(axis=1) / 32768
    return audio[: len(audio) // WINDOW * WINDOW][np.newaxis].astype(np.float32)


def ask(library, client, model, audio):
    """The probability of speech in each window; shape [windows]."""
    inputs = [library.InferInput("x", list(audio.shape), "FP32"), library.InferInput("sr", [1], "INT64")]
    inputs[0].set_data_from_numpy(audio)
    inputs[1].set_data_from_numpy(np.array([RATE], dtype=np.int64))
    return client.infer(model, inputs).as_numpy("speech")[0]


def picture(probabilities):
    """One character a window, taller where speech is likelier."""
    bars = " ▁▂▃▄▅▆▇█"
    return "".join(bars[min(int(p * 9), 8)] for p in probabilities)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--http", default="127.0.0.1:8080")
    parser.add_argument("--grpc", default="127.0.0.1:8081")
    parser.add_argument("--model", default="silero-vad")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("files", nargs="+", type=pathlib.Path)
    arguments = parser.parse_args()

    rest = tritonclient.http.InferenceServerClient(arguments.http)
    grpc = tritonclient.grpc.InferenceServerClient(arguments.grpc)
    answers = {}
    for path in arguments.files:
        audio = samples(path)
        by_rest = ask(tritonclient.http, rest, arguments.model, audio)
        by_grpc = ask(tritonclient.grpc, grpc, arguments.model, audio)
        if not np.array_equal(by_rest, by_grpc):
            sys.exit(f"{path}: REST and gRPC answered differently")
        answers[path.name] = [float(p) for p in by_rest]
        if arguments.json:
            continue
        speaking = int((by_rest > 0.5).sum())
        verdict = "speech" if speaking > len(by_rest) // 4 else "no speech"
        print(f"\n{path.name}: {audio.shape[1] / RATE:.1f} s of sound, in {len(by_rest)} windows of {1000 * WINDOW // RATE} ms")
        print(f"  |{picture(by_rest)}|  probability of speech over time")
        print(f"  REST  {verdict}: likely in {speaking} of {len(by_rest)} windows, highest {by_rest.max():.5f}, mean {by_rest.mean():.3f}")
        print(f"  gRPC  the same {len(by_grpc)} numbers, bit for bit")
    if arguments.json:
        json.dump(answers, sys.stdout)


if __name__ == "__main__":
    main()
