# SPDX-License-Identifier: Apache-2.0
"""A gRPC server without generated code: messages are bytes.

/lab.Echo/Unary answers with the message and a trailer; /lab.Echo/Chat answers every message as it
comes; /lab.Echo/Flaky fails with UNAVAILABLE until it was called twice.
"""

import sys
from concurrent import futures

import grpc


class Echo(grpc.GenericRpcHandler):
    calls = 0

    def service(self, details):
        return {
            "/lab.Echo/Unary": grpc.unary_unary_rpc_method_handler(self.unary),
            "/lab.Echo/Chat": grpc.stream_stream_rpc_method_handler(self.chat),
            "/lab.Echo/Flaky": grpc.unary_unary_rpc_method_handler(self.flaky),
        }.get(details.method)

    def unary(self, message, context):
        context.set_trailing_metadata((("x-lab-trailer", "seen"),))
        return b"echo " + message

    def chat(self, messages, context):
        for message in messages:
            yield b"echo " + message

    def flaky(self, message, context):
        Echo.calls += 1
        if Echo.calls < 3:
            context.abort(grpc.StatusCode.UNAVAILABLE, "not yet")
        return b"call %d" % Echo.calls


server = grpc.server(futures.ThreadPoolExecutor(8), handlers=(Echo(),))
server.add_insecure_port(sys.argv[1])
server.start()
print("ready", flush=True)
server.wait_for_termination()
