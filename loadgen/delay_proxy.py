"""A proxy between a service and its store, in a process of its own: slows answers down, holds them back, cuts connections.

    python -m loadgen.delay_proxy --listen tcp:127.0.0.1:0 --to unix:/run/valkey.sock --delay-ms 20

It prints `listening ADDRESS` once it does, and then obeys lines on its standard input, answering each with `ok` or `error ...`:
* `delay MS [MS_BACK]`: from now on; one number counts for both directions;
* `hole`: connections stay and are accepted, nothing passes, nobody is told;
* `drop`: every connection is cut, new ones are refused at once;
* `pass`: neither any more; what a hole held back passes now.
The end of its input ends it, so that it never outlives whoever started it. Bytes are delayed, not slowed: any number of them
may be on their way (up to 1 MiB per direction and connection), as on a long line. Delays are about 0.1 ms exact.
"""

import argparse
import asyncio
import contextlib
import selectors
import sys
from collections.abc import Sequence

READ_BYTES = 1 << 16
ON_THE_WAY_CHUNKS = 16  # of READ_BYTES each: 1 MiB, then the sender has to wait


class DelayProxy:
    """Listens at one address, connects to another; `delays` are s, towards the store and back, and may change at any time."""

    def __init__(self, to: str, delay_s: float, delay_back_s: float) -> None:
        self.delays = [delay_s, delay_back_s]
        self._to = to
        self._is_dropping = False
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._server: asyncio.Server
        self._tasks: set[asyncio.Task[None]] = set()

    async def start(self, listen: str) -> str:
        """Listen; returns the address, with the port that was found where port 0 was asked for. Raises OSError."""
        kind, _, place = listen.partition(":")
        if kind == "unix":
            self._server = await asyncio.start_unix_server(self._accept, place)
            return listen
        host, _, port = place.rpartition(":")
        self._server = await asyncio.start_server(self._accept, host, int(port))
        return f"tcp:{host}:{self._server.sockets[0].getsockname()[1]}"

    async def stop(self) -> None:
        """Refuse new connections and cut all others."""
        self._server.close()
        self._cut()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def obey(self, line: str) -> str:
        """Do what a line of input says; returns the answer."""
        try:
            match line.split():
                case ["delay", there]:
                    self.delays[:] = [float(there) / 1000] * 2
                case ["delay", there, back]:
                    self.delays[:] = [float(there) / 1000, float(back) / 1000]
                case ["hole"]:
                    self._flowing.clear()
                case ["drop"]:
                    self._is_dropping = True
                    self._cut()
                case ["pass"]:
                    self._is_dropping = False
                    self._flowing.set()
                case _:
                    return "error: delay MS [MS_BACK] | hole | drop | pass"
        except ValueError as error:
            return f"error: {error}"
        return "ok"

    def _cut(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_dropping:
            writer.transport.abort()
            return
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until either side ends it; then both are cut."""
        writers = [writer]
        pumps: list[asyncio.Task[None]] = []
        try:
            far_reader, far_writer = await _connect(self._to)
            writers.append(far_writer)
            pumps = [
                asyncio.ensure_future(self._pump(reader, far_writer, 0)),
                asyncio.ensure_future(self._pump(far_reader, writer, 1)),
            ]
            await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
        except OSError:  # nobody there: the caller sees its connection end
            pass
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
            for each in writers:
                each.transport.abort()

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, direction: int) -> None:
        """One direction: chunks with the time at which each is due. The end travels as the last chunk."""
        on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(ON_THE_WAY_CHUNKS)
        loop = asyncio.get_running_loop()

        async def deliver() -> None:
            data = b"-"
            while data:
                due, data = await on_the_way.get()
                if due > loop.time():
                    await asyncio.sleep(due - loop.time())
                await self._flowing.wait()
                writer.write(data)
                await writer.drain()

        delivery = asyncio.ensure_future(deliver())
        try:
            data = b"-"
            while data and not delivery.done():
                data = await reader.read(READ_BYTES)
                await on_the_way.put((loop.time() + self.delays[direction], data))
            await delivery
        except ConnectionError:
            pass
        finally:
            delivery.cancel()
            await asyncio.gather(delivery, return_exceptions=True)


async def _connect(address: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    kind, _, place = address.partition(":")
    if kind == "unix":
        return await asyncio.open_unix_connection(place)
    host, _, port = place.rpartition(":")
    return await asyncio.open_connection(host, int(port))


async def _run(arguments: argparse.Namespace) -> None:
    back_ms = arguments.delay_ms if arguments.delay_back_ms is None else arguments.delay_back_ms
    proxy = DelayProxy(arguments.to, arguments.delay_ms / 1000, back_ms / 1000)
    _say(f"listening {await proxy.start(arguments.listen)}")
    commands = asyncio.StreamReader()
    loop = asyncio.get_running_loop()
    transport, _ = await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(commands), sys.stdin)
    try:
        while line := await commands.readline():
            _say(proxy.obey(line.decode()))
    finally:
        transport.close()
        await proxy.stop()


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


def _address(text: str) -> str:
    kind, _, place = text.partition(":")
    if (kind == "unix" and place) or (kind == "tcp" and place.rpartition(":")[2].isdigit()):
        return text
    raise argparse.ArgumentTypeError(f"{text!r} is neither tcp:HOST:PORT nor unix:PATH")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run until the end of the standard input."""
    parser = argparse.ArgumentParser(prog="python -m loadgen.delay_proxy", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--listen", type=_address, default="tcp:127.0.0.1:0", help="tcp:HOST:PORT (0: any) or unix:PATH")
    parser.add_argument("--to", type=_address, required=True, help="tcp:HOST:PORT or unix:PATH of the store")
    parser.add_argument("--delay-ms", type=float, default=0.0, help="towards the store, and back unless that is given")
    parser.add_argument("--delay-back-ms", type=float, default=None, help="from the store back")
    with contextlib.suppress(KeyboardInterrupt), asyncio.Runner(loop_factory=_precise_loop) as runner:
        runner.run(_run(parser.parse_args(arguments)))


def _precise_loop() -> asyncio.AbstractEventLoop:
    """epoll rounds a wait up to the next ms, select does not; a proxy has few connections."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


if __name__ == "__main__":
    main()
