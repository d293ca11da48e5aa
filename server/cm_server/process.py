"""The server as a process: its command line, its start, and its stop by a signal."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import json
import logging
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from cloudmanager import config, server_options
from cloudmanager.protocol.errors import ServerError, ServiceError
from cloudmanager.server_options import ServerOptions

from .app import DATABASE, DEFAULT_LIMITS, Environment, Server
from .limits import Limits
from .logs import configure_logging
from .net import certificate_creation
from .net.listener import all_on_loopback, open_listening_sockets
from .store import file_replacement
from .store.lockfile import hold_lock

log = logging.getLogger("cm_server")

#: How this machine connects to a server that listens on all of its addresses.
_LOCAL_ADDRESSES = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}


class StartError(Exception):
    """The server cannot start; the message is one sentence for the user."""


async def serve(home: Path, options: ServerOptions, limits: Limits, on_ready: Any) -> None:
    """Serve until SIGTERM or SIGINT.

    Args:
        home: the server's folder.
        options: of the server.
        limits: of the server.
        on_ready: called as ``on_ready(url, address, notes)`` when the server listens: ``url`` is
            how this machine connects, ``address`` where the server listens, and ``notes`` are
            sentences for the user about repairs and losses in the folder.

    Raises:
        StartError: the address is in use, the folder belongs to a running server, or its
            store or a certificate cannot be used.
    """
    host = options.listen
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(hold_lock(home))
            notes = _repair_folder(home, own_database=options.store is None)
            sockets = open_listening_sockets(host, options.port)
            local = all_on_loopback(sockets)
            environment = Environment(
                local=local,
                webhook=os.environ.get("CM_WEBHOOK", ""),
                webhook_secret=os.environ.get("CM_WEBHOOK_SECRET", ""),
            )
            server = Server(home, options, limits, environment)
        except ServerError as error:
            raise StartError(error.reason) from error
        tcp_port, scheme = sockets[0].getsockname()[1], "http" if local else "https"
        address = f"{scheme}://{_url_host(host)}:{tcp_port}"
        local_url = f"{scheme}://{_url_host(_LOCAL_ADDRESSES.get(host, host))}:{tcp_port}"
        listener = server.make_listener()
        server.start(address)
        await server.cluster.wait_until_ready()
        listener.start_accepting(sockets)
        state = config.server_state_file(home)
        config.write_private(state, json.dumps({"url": local_url, "pid": server.status.pid}))
        log.info("version %s listens on %s", server.status.version, address)
        stop = _stop_signal()  # before on_ready, since the signal may follow immediately
        on_ready(local_url, address, notes)
        gc.enable()
        gc.freeze()  # the objects of now live until the end: garbage collections may skip them
        try:
            await stop.wait()
        finally:
            listener.stop_accepting()
            server.stop()
            await server.cluster.close()
            state.unlink(missing_ok=True)
            log.info("stopped")


def _repair_folder(home: Path, *, own_database: bool) -> list[str]:
    """Finish an interrupted replacement of files, and look for lost ones.

    Args:
        home: the server's folder, locked by this process.
        own_database: whether the database is a file in this folder.

    Returns:
        Sentences for the user about what was repaired or lost.
    """
    notes = _finish_replacement(home)
    has_ca, has_database = config.ca_file(home).exists(), (home / DATABASE).exists()
    if own_database and has_ca and not has_database:
        notes.append(
            f"The {DATABASE} of the server in {home} is missing: this fleet is empty. "
            "`mbm server-restore` restores a backup."
        )
    if own_database and has_database and not has_ca:
        notes.append(
            f"The certificate authority in {home} is missing, and a new one is created: boards "
            "with the old one must be enrolled again, or `mbm server-restore` restores it."
        )
    for note in notes:
        log.warning("%s", note)
    return notes


def _finish_replacement(home: Path) -> list[str]:
    """Finish an interrupted replacement of files; return a sentence if there was one."""
    finished = file_replacement.finish(home)
    return [finished] if finished else []


def _url_host(host: str) -> str:
    """Return a host as it is written in a URL (IPv6: RFC 3986, 3.2.2)."""
    return f"[{host}]" if ":" in host else host


def _stop_signal() -> asyncio.Event:
    """Return an event that SIGTERM and SIGINT set."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    return stop


def main(limits: Limits = DEFAULT_LIMITS) -> None:
    """Run in the foreground; print a line of JSON when the server listens or cannot start.

    Args:
        limits: of the server. A program that starts a process with others calls this function.
    """
    try:
        options = _parse_command_line()
        _raise_file_limit()
        os.umask(0o077)  # only the server's user may read its files
        home = _open_home(limits, log_json=options.log_json)
        asyncio.run(serve(home, options, limits, _print_ready))
    except StartError as error:
        _print_json({"error": str(error)})
        sys.exit(1)
    finally:
        certificate_creation.stop_creating()


def _parse_command_line() -> ServerOptions:
    """Return the options of the command line; exit with a message if they are not valid."""
    parser = argparse.ArgumentParser(
        prog="python -m cm_server", description="The Cloudmanager service."
    )
    server_options.add_options(parser)
    options = server_options.read_options(parser.parse_args())
    if options.bus and not options.store:
        parser.error("--bus needs a shared store: --store postgresql://…")
    return options


def _raise_file_limit() -> None:
    """Allow as many open files as the system does: shells set 1,024, and each link needs one."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _open_home(limits: Limits, *, log_json: bool) -> Path:
    try:
        home = config.make_home_folder()
        configure_logging(home / "server.log", limits, as_json=log_json)
    except OSError as error:
        raise StartError(f"Its folder cannot be used: {error}") from error
    except ServiceError as error:
        raise StartError(str(error)) from error
    return home


def _print_ready(url: str, address: str, notes: list[str]) -> None:
    _print_json({"url": url, "listens": address, **({"notes": notes} if notes else {})})


def _print_json(line: dict[str, Any]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()
