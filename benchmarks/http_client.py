"""A cheap HTTP/1.1 client: one keep-alive connection, one request at a time.

A load generator shares the cores with the server that it measures, and a test must be able to leave a
connection at any point of a request.
"""

from __future__ import annotations

import asyncio
import json
import socket
import struct
from collections.abc import Mapping
from types import TracebackType
from typing import Any, NamedTuple


class Reply(NamedTuple):
    status: int
    headers: Mapping[str, str]  # names in lower case
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


def request(path: str, content: Any = None) -> bytes:
    """The bytes of a GET, or of a POST of `content` as JSON (bytes are sent as they are)."""
    body = b"" if content is None else content if isinstance(content, bytes) else json.dumps(content).encode()
    method = "GET" if content is None else "POST"
    head = f"{method} {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


class Connection:
    """`async with Connection(port) as connection: await connection.ask("/embed", {"text": ...})`"""

    def __init__(self, port: int) -> None:
        self.port = port

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection("127.0.0.1", self.port)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.writer.close()

    async def ask(self, path: str, content: Any = None) -> Reply:
        self.send(request(path, content))
        return await self.reply()

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def reply(self) -> Reply:
        """Raises asyncio.IncompleteReadError when the connection ends before the reply does."""
        head = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.rstrip().split("\r\n")
        headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines)}
        body = await self.reader.readexactly(int(headers["content-length"]))
        return Reply(int(first.split()[1]), headers, body)

    def reset(self) -> None:
        """End the connection at once: the server reads a reset (RST) instead of an end (FIN)."""
        at_once = struct.pack("ii", 1, 0)
        self.writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
        self.writer.close()
