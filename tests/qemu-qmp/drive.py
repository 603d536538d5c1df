"""Drives a monitor with qemu.qmp, the client library that QEMU's own tools use.

Usage: drive.py SOCKET. The machine has been started with -S. Prints one line a check; a check that
fails is an exception. Leaves the machine running: `quit` belongs to qmp-shell, which comes next.
"""

import asyncio
import sys

from qemu.qmp import ExecuteError, QMPClient, Runstate


async def drive(path: str) -> None:
    client = QMPClient("test")
    await client.connect(path)
    assert client.runstate == Runstate.RUNNING
    assert client.greeting.QMP.version["qemu"]["major"] == 7, client.greeting
    print("ok connected and negotiated")

    status = await client.execute("query-status")
    assert status["status"] == "prelaunch", status
    commands = {entry["name"] for entry in await client.execute("query-commands")}
    assert {"query-status", "quit", "cont", "stop"} <= commands, commands
    print("ok queries")

    for command, arguments, wanted in (
        ("no-such-command", {}, "CommandNotFound"),
        ("query-status", {"x": 1}, "GenericError"),
        ("query-balloon", {}, "DeviceNotActive"),
    ):
        try:
            await client.execute(command, arguments)
        except ExecuteError as error:
            assert error.error_class == wanted, error
        else:
            raise AssertionError(f"{command} succeeded")
    print("ok errors")

    with client.listener(("RESUME", "STOP", "RESET")) as listener:
        for command in ("cont", "stop", "system_reset", "cont"):
            await client.execute(command)
        names = [(await asyncio.wait_for(listener.get(), 60))["event"] for _ in range(4)]
    assert names == ["RESUME", "STOP", "RESET", "RESUME"], names
    print("ok events")

    # Many at once: each reply finds its request by id.
    replies = await asyncio.gather(
        *(client.execute("query-name" if i % 2 else "query-uuid") for i in range(200))
    )
    assert all(("UUID" in reply) == (i % 2 == 0) for i, reply in enumerate(replies))
    print("ok two hundred at once")

    await client.disconnect()
    await client.connect(path)
    assert (await client.execute("query-status"))["running"] is True
    await client.disconnect()
    print("ok connected again")


if __name__ == "__main__":
    asyncio.run(drive(sys.argv[1]))
