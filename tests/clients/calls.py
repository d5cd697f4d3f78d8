"""The calls that tritonclient's simple examples make against one model, over REST and gRPC, with its own clients unchanged.

    calls.py HTTP-ADDRESS GRPC-ADDRESS

Called by run.sh, with the model `simple` (sum and difference of two [n, 16] INT32) served. Each step prints a line; the first
that fails ends the program.
"""

import asyncio
import queue
import sys
from functools import partial

import numpy as np
import tritonclient.grpc as grpcclient
import tritonclient.grpc.aio as grpcaio
import tritonclient.http as httpclient
import tritonclient.http.aio as httpaio

MODEL = "simple"
A = np.arange(16, dtype=np.int32).reshape(1, 16)
B = np.ones((1, 16), dtype=np.int32)


def check(result):
    np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), A + B)
    np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), A - B)


def inputs(library, **form):
    tensors = [library.InferInput(name, [1, 16], "INT32") for name in ("INPUT0", "INPUT1")]
    for tensor, data in zip(tensors, (A, B)):
        tensor.set_data_from_numpy(data, **form)
    return tensors


def outputs(library, **form):
    return [library.InferRequestedOutput(name, **form) for name in ("OUTPUT0", "OUTPUT1")]


def health(client):
    assert client.is_server_live() and client.is_server_ready() and client.is_model_ready(MODEL)
    assert client.is_model_ready(MODEL, "1")


def rest(address):
    client = httpclient.InferenceServerClient(address, concurrency=4)
    health(client)
    metadata = client.get_server_metadata()
    assert {"statistics", "model_configuration"} <= set(metadata["extensions"]), metadata
    assert client.get_model_metadata(MODEL)["inputs"][0]["shape"] == [-1, 16]
    config = client.get_model_config(MODEL)
    assert (config["max_batch_size"], config["input"][0]["dims"]) == (8, [16]), config
    assert client.get_model_repository_index() == [{"name": MODEL, "version": "1", "state": "READY"}]
    before = client.get_inference_statistics(MODEL)["model_stats"][0]["inference_count"]
    for binary in (True, False):
        check(client.infer(MODEL, inputs(httpclient, binary_data=binary), outputs=outputs(httpclient, binary_data=binary)))
    check(client.infer(MODEL, inputs(httpclient), request_id="1", model_version="1", timeout=5_000_000))
    for algorithm in ("gzip", "deflate"):
        check(client.infer(MODEL, inputs(httpclient), request_compression_algorithm=algorithm,
                           response_compression_algorithm=algorithm))
    for pending in [client.async_infer(MODEL, inputs(httpclient)) for _ in range(8)]:
        check(pending.get_result())
    after = client.get_inference_statistics(MODEL)["model_stats"][0]["inference_count"]
    assert after - before == 13, (before, after)
    try:
        client.infer("nope", inputs(httpclient))
        raise AssertionError("a model that is not there answered")
    except httpclient.InferenceServerException as error:
        assert "Request for unknown model: 'nope' is not found" in str(error), error


def grpc(address):
    client = grpcclient.InferenceServerClient(address)
    health(client)
    assert "statistics" in client.get_server_metadata().extensions
    assert list(client.get_model_metadata(MODEL).inputs[0].shape) == [-1, 16]
    config = client.get_model_config(MODEL).config
    assert (config.max_batch_size, list(config.input[0].dims), config.platform) == (8, [16], "pytorch_libtorch"), config
    assert config.HasField("dynamic_batching") and config.input[0].data_type == 8, config
    assert [(row.name, row.state) for row in client.get_model_repository_index().models] == [(MODEL, "READY")]
    before = client.get_inference_statistics(MODEL).model_stats[0].inference_count
    check(client.infer(MODEL, inputs(grpcclient), outputs=outputs(grpcclient), client_timeout=10))
    check(client.infer(MODEL, inputs(grpcclient), compression_algorithm="gzip"))
    answered = queue.Queue()
    for _ in range(8):
        client.async_infer(MODEL, inputs(grpcclient), partial(lambda q, result, error: q.put((result, error)), answered))
    for _ in range(8):
        result, error = answered.get(timeout=10)
        assert error is None, error
        check(result)
    statistics = client.get_inference_statistics(MODEL).model_stats[0]
    assert statistics.inference_count - before == 10, statistics
    assert statistics.batch_stats and statistics.inference_stats.success.count, statistics
    try:
        client.infer(MODEL, inputs(grpcclient)[:1])
        raise AssertionError("a request without one of its inputs was answered")
    except grpcclient.InferenceServerException as error:
        assert error.status() == "StatusCode.INVALID_ARGUMENT", error


async def asynchronous(http_address, grpc_address):
    async with httpaio.InferenceServerClient(http_address) as client:
        assert await client.is_server_ready()
        check(await client.infer(MODEL, inputs(httpclient)))
    async with grpcaio.InferenceServerClient(grpc_address) as client:
        assert await client.is_model_ready(MODEL)
        check(await client.infer(MODEL, inputs(grpcclient)))


def main():
    http_address, grpc_address = sys.argv[1:]
    for name, step in (
        ("REST", lambda: rest(http_address)),
        ("gRPC", lambda: grpc(grpc_address)),
        ("asyncio", lambda: asyncio.run(asynchronous(http_address, grpc_address))),
    ):
        step()
        print(f"tritonclient over {name}: health, metadata, configuration, index, inference, statistics")


main()
