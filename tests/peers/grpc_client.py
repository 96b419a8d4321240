# SPDX-License-Identifier: Apache-2.0
"""Calls grpc_server.py at a target and prints what it saw, a line per call."""

import queue
import sys

import grpc

channel = grpc.insecure_channel(sys.argv[1])


def unary(method, message):
    call = channel.unary_unary(f"/lab.Echo/{method}")
    try:
        answer, details = call.with_call(message, timeout=20)
        trailers = dict(details.trailing_metadata())
        shown = answer.decode() if len(answer) < 100 else len(answer)
        print(method, shown, trailers.get("x-lab-trailer", "-"), flush=True)
    except grpc.RpcError as error:
        print(method, error.code().name, error.details(), flush=True)


def chat(count):
    """Sends a message only when the one before was answered: both directions must stream."""
    waiting = queue.Queue()
    waiting.put(b"0")
    answers = channel.stream_stream("/lab.Echo/Chat")(iter(waiting.get, None), timeout=20)
    number = 0
    try:
        for number, answer in enumerate(answers, 1):
            assert answer == b"echo %d" % (number - 1), answer
            waiting.put(b"%d" % number if number < count else None)
    except grpc.RpcError:
        waiting.put(None)
    print("Chat", number, answers.code().name, flush=True)


unary("Unary", b"hello")
unary("Unary", b"x" * 2_000_000)
chat(100)
unary("Flaky", b"")
unary("Missing", b"")
