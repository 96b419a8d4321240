# SPDX-License-Identifier: Apache-2.0
"""A WebSocket server that echoes, with the path it was asked for."""

import asyncio
import sys

from websockets.asyncio.server import serve


async def echo(connection):
    await connection.send(connection.request.path)
    async for message in connection:
        await connection.send(message)


async def main(host, port):
    async with serve(echo, host, int(port)) as server:
        print("ready", flush=True)
        await server.serve_forever()


asyncio.run(main(*sys.argv[1:]))
