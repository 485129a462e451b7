"""`gptcli serve`: the OpenAI API and a chat page on this machine."""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Annotated, Any

import typer

from gptcli.cli import options
from gptcli.cli.parsing.config_file import configured
from gptcli.cli.parsing.option_groups import only, option_group, panel, with_option_groups, without
from gptcli.cli.run_options import RunOptions, load_model, template_of
from gptcli.cli.terminal.signals import handled
from gptcli.cli.terminal.stderr import ProgressLine, print_line, print_note
from gptcli.errors import UsageError
from gptcli.models.catalog import DEFAULT_MODEL
from gptcli.openai_api.prompting import Prompting
from gptcli.settings import SamplingConfig

_server_option, _access_option = panel("Server"), panel("Access")
_LOOPBACK = ("127.0.0.1", "::1", "localhost")


@option_group
class ServerOptions:
    """Where the server listens, and what it bounds."""

    host: Annotated[str, _server_option("Address to listen on; beyond this machine only with a key.")] = "127.0.0.1"
    port: Annotated[int, _server_option("Port to listen on; 0 is any free one.", min=0, max=65535)] = 8080
    max_tokens: Annotated[
        int,
        _server_option("Most tokens of an answer; -1: until the context is full.", "-n", "--max-tokens", min=-1),
    ] = -1
    queue: Annotated[int, _server_option("Requests that may run or wait; another gets status 429.", min=1)] = 64
    parallel: Annotated[
        int | None,
        _server_option("Texts that share a step at most. (default: as many as still get faster and fit)", min=1),
    ] = None
    grace: Annotated[int, _server_option("Seconds for running requests to end, after SIGTERM.", min=0)] = 30


@option_group
class AccessOptions:
    """Who may ask."""

    api_key: Annotated[
        str | None,
        _access_option("What a request must have, as a bearer token or x-api-key.", envvar="GPTCLI_API_KEY"),
    ] = None
    no_key: Annotated[bool, _access_option("Let whoever reaches --host ask, without a key.", "--no-key")] = False
    allow_host: Annotated[
        list[str] | None, _access_option("Answer under this name too, beside localhost. Repeatable.", metavar="NAME")
    ] = None
    cors: Annotated[
        list[str] | None,
        _access_option("Let pages of this origin ask; `*` is all. Repeatable.", metavar="ORIGIN"),
    ] = None

    def check(self, host: str) -> None:
        """Raises UsageError where others could reach the server without a key."""
        if self.api_key is not None and (not self.api_key.isascii() or not self.api_key.strip()):
            raise UsageError("an API key must be ASCII, and not empty")
        if host not in _LOOPBACK and self.api_key is None and not self.no_key:
            raise UsageError(
                f"others could reach {host} without a key",
                "set GPTCLI_API_KEY or --api-key; --no-key lets everybody in",
            )


@with_option_groups
def serve(
    context: typer.Context,
    *,
    model: options.Models = None,
    server: ServerOptions,
    access: AccessOptions,
    runtime: Annotated[options.RuntimeOptions, without("speculate", "draft_model")],
    prompts: Annotated[
        options.PromptOptions,
        only("system", "system_file", "chat_template", "thinking", "reasoning_effort", "max_input"),
    ],
    sampling: options.SamplingOptions,
    output: Annotated[options.OutputOptions, only("quiet")],
) -> None:
    """Serve the OpenAI API on this machine, with a page to chat on."""
    given = sampling.given()
    SamplingConfig.resolve(given, {})  # a bad value fails before anything is read
    access.check(server.host)
    names = model or [os.environ.get("GPTCLI_MODEL") or DEFAULT_MODEL]
    runs = {
        served_name(name): RunOptions(
            model=name, runtime=runtime, given=given, prompts=prompts, output=output, configured=configured(context)
        )
        for name in names
    }
    if len(runs) < len(names):
        raise UsageError(f"requests could not tell these models apart: {', '.join(names)}")
    from gptcli.serve.server import listen  # the libraries of the server take a while

    with listen(server.host, server.port) as listening:
        _run(runs, server, access, listening)


def served_name(model: str) -> str:
    """The name of a model in requests: its own, or that of its folder or file without the path."""
    path = os.path.expanduser(model)
    return Path(path).resolve().name if os.path.exists(path) else model


def _opened(run: RunOptions, activity: ProgressLine) -> Prompting:
    """A model to serve, with its chat template and system message. Raises GptcliError."""
    lm = run.open_model(activity)
    template = template_of(run, lm)
    if run.prompts.chat_template is not None:
        template()  # fails now if it cannot be read
    return Prompting(lm, run.given, template, run.system())


def _run(runs: dict[str, RunOptions], server: ServerOptions, access: AccessOptions, listening: Any) -> None:
    """Serves until a signal comes, and then dies by it."""
    from gptcli.serve.app import Outlets, make_app
    from gptcli.serve.guards import Access
    from gptcli.serve.runner import Runner
    from gptcli.serve.served_models import ServedModels
    from gptcli.serve.server import Server
    from gptcli.serve.service import Service

    run = next(iter(runs.values()))
    runner = Runner(server.queue, server.parallel)
    with ProgressLine(quiet=run.output.quiet) as activity:
        openers = {name: partial(_opened, each, activity) for name, each in runs.items()}
        served = ServedModels(openers, run.note, runner.leave)
        first, *_ = [served.opened(name) for name in runs]  # a broken model fails now
        load_model(first.lm, activity)
    run.print_failures(first.lm)
    del first  # so that its memory can be freed
    service = Service(served, runner, server.max_tokens)
    outlets = Outlets(log=(lambda line: None) if run.output.quiet else print_line, on_bug=_note_bug)
    hosts = {name.lower() for name in (server.host, *(access.allow_host or ()))}
    allowed = Access(hosts=hosts, origins=set(access.cors or ()), key=access.api_key)
    running = Server(make_app(service, allowed, outlets, run.prompts.max_input), server.grace, 4 * server.queue + 64)
    received = list[int]()

    def receive(signum: int, frame: FrameType | None) -> None:
        received.append(signum)
        running.stop(at_once=received.count(signum) > 1)

    with handled(receive, "SIGINT", "SIGTERM", "SIGHUP"):
        host, port, *_ = listening.getsockname()
        if not run.output.quiet:
            print_line(f"http://{f'[{host}]' if ':' in host else host}:{port}")
        asyncio.run(running.serve(sockets=[listening]))
    service.close()
    served.close()
    if received:
        if received[0] == signal.SIGINT:
            raise KeyboardInterrupt
        signal.raise_signal(received[0])


def _note_bug(error: Exception) -> None:
    """Reports a bug without its message, which may contain a request's text."""
    if os.environ.get("GPTCLI_DEBUG", "0") not in ("", "0"):
        traceback.print_exception(error)
    print_note(f"internal error: {type(error).__name__}: this is a bug; GPTCLI_DEBUG=1 shows where it is")
