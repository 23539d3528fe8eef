"""The commands, and what each may be asked with."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

from node.cli import readers
from node.cli.options import Options
from node.config import SWA, Config
from node.types import Strategy

MAX_CANDIDATES = 64  # node.wire's; importing that would load grpc for `--help`.


@dataclass(frozen=True, slots=True)
class Command:
    """A command: what `--help` says about it, and its options."""

    name: str
    help: str
    add: Callable[[Options], None]
    example: str = ""


def _verbose(p: Options) -> None:
    p.switch("--verbose", "log to stderr, and show where an error came from", short="-v")


def _address(p: Options) -> None:
    what = "the node to ask (default: this machine's), also by its name or id here; more with commas, for when it dies"
    p.value("--address", what, "HOST[:PORT]|NAME[,…]", readers.clients)


def _serve(p: Options) -> None:
    for f in fields(Config):
        choices = f.metadata["choices"]
        metavar = "|".join(choices) if choices else f.metadata["metavar"]
        default = "" if f.default in ("", None, 0, -1) else f" (default {f.default})"
        # Unread: `config.load` checks it, whichever of its four sources it came from.
        flag = f"--{f.name.replace('_', '-')}"
        p.value(flag, f.metadata["help"] + default, metavar, None, bare=f.metadata["bare"])
    _verbose(p)


def _turns(p: Options) -> None:
    """What one turn may be asked with, in `ask` and in `chat`."""
    _address(p)
    p.value("--topic", "the conversation to continue; begun if it is new", "NAME", readers.name)
    p.value("--candidates", "answers to vote on, over the mesh", "N", readers.whole(1, MAX_CANDIDATES), short="-n")
    p.value("--strategy", "how votes are counted: " + ", ".join(Strategy), "NAME", readers.strategy)
    p.switch("--local", "only this node takes part")
    p.switch("--votes", "show how the vote went")
    p.value("--max-tokens", "longest answer, in tokens", "N", readers.whole(1, 2**31 - 1))
    p.value("--temperature", "0 is greedy", "T", readers.number(0, 10))
    p.value("--top-p", "nucleus: most probable tokens of so much probability; 1 is off", "P", readers.number(0.001, 1))
    p.value("--top-k", "so many most probable tokens; 0 is off", "N", readers.whole(0, 1_000_000))
    p.value("--min-p", "least probability relative to the best token; 0 is off", "P", readers.number(0, 1))
    p.value("--repeat-penalty", "above 1: discourages what is among the last 64 tokens", "X", readers.number(0.01, 10))
    p.value("--presence-penalty", "above 0: the same, subtracted once", "X", readers.number(-2, 2))
    p.value("--frequency-penalty", "above 0: the same, subtracted for each time", "X", readers.number(-2, 2))
    p.value("--seed", "for answers that can be repeated", "N", readers.whole(0, 2**64 - 1))
    p.value("--system", "a system prompt, at the start of the conversation", "TEXT", readers.utf8)
    # CONCLAVE_MODEL is what a node serves, and that may be a path.
    p.value("--model", "ask only nodes that serve this model", "NAME", readers.name, variable="CONCLAVE_ASK_MODEL")
    p.value("--timeout", "give up after so long (default 300)", "SECONDS", readers.number(0.001, 86400))


def _ask(p: Options) -> None:
    p.add_argument("prompt", nargs="*", metavar="PROMPT", help="the question; `-`, or none and a pipe: standard input")
    _turns(p)
    p.value(
        "--top-logprobs", "show how probable each token was, and the N best in its place", "N", readers.whole(0, 20)
    )
    p.switch("--ignore-eos", "for benchmarks: write --max-tokens tokens, whatever they are")
    p.switch("--json", "print the whole response as JSON")
    _verbose(p)


def _chat(p: Options) -> None:
    _turns(p)
    _verbose(p)


def _status(p: Options) -> None:
    _address(p)
    p.switch("--watch", "show it anew each second", short="-w")
    p.switch("--json", "print the whole response as JSON (one line each second with --watch)")
    _verbose(p)


def _token(p: Options) -> None:
    p.add_argument(
        "action", nargs="?", metavar="show|new", help="show this machine's token (default), or make a new one"
    )
    p.switch("--print", "with new: show a fresh token without storing it")
    p.value(
        "--overlap", "with new: how long nodes here accept the old token as well", "HOURS", readers.number(0.01, 8760)
    )
    p.switch("--yes", "with new: replace the token without asking", short="-y")
    _verbose(p)


def _models(p: Options) -> None:
    p.add_argument(
        "action", nargs="?", metavar="list|plan|pull|rm", help="what there is (default), what fits, fetch, remove"
    )
    p.add_argument(
        "name", nargs="?", metavar="NAME", help="a model: of the list, NAME:QUANT, hf:OWNER/NAME, with plan also a file"
    )
    p.value("--memory", "plan for GPUs of this size, not for this machine", "SIZE[,SIZE]", readers.memory)
    p.value("--lent", "plan NAME as if other nodes lent so much memory (--pool)", "SIZE[,SIZE]", readers.memory)
    p.value("--swa", "with plan: KV of sliding-window layers, as a node's --swa", "|".join(SWA), readers.swa)
    p.switch("--yes", "with rm: remove without asking", short="-y")
    p.switch("--json", "print it as JSON")
    _verbose(p)


def _topics(p: Options) -> None:
    p.add_argument("action", nargs="?", metavar="list|show|forget", help="list them (default), show one, let one go")
    p.add_argument("name", nargs="?", metavar="NAME", help="of show and forget: the topic")
    _address(p)
    p.switch("--json", "print the whole response as JSON")
    _verbose(p)


def _pair(p: Options) -> None:
    p.add_argument(
        "code", nargs="*", metavar="CODE", help="six digits that another machine shows; none: show some here"
    )
    p.value("--at", "where the code is shown, if it is not found by itself", "HOST:PORT", readers.addresses)
    p.switch("--yes", "replace the token that this machine has without asking", short="-y")
    _verbose(p)


def _doctor(p: Options) -> None:
    p.switch("--json", "print the checks as JSON")
    _verbose(p)


def _completion(p: Options) -> None:
    p.add_argument("shell", nargs="?", metavar="bash|zsh|fish", help="the shell that is to complete")
    _verbose(p)


COMMANDS: dict[str, Command] = {
    c.name: c
    for c in (
        Command("serve", "run a node (the default)", _serve, "python -m node --join auto"),
        Command("ask", "one question, one answer", _ask, 'python -m node ask "What is 17 + 25?" --votes'),
        Command("chat", "a conversation", _chat, "python -m node chat --topic garden"),
        Command("status", "nodes, topics and slots", _status, "python -m node status --watch"),
        Command("topics", "the conversations that are kept", _topics, "python -m node topics show garden"),
        Command("token", "the secret that machines of one mesh share", _token, "python -m node token show"),
        Command("models", "models: what there is, what fits and why", _models, "python -m node models plan"),
        Command("pair", "bring the token to another machine with six digits", _pair, "python -m node pair"),
        Command("completion", "a script for your shell", _completion, "source <(conclave completion bash)"),
        Command("doctor", "check this machine, and say what to do", _doctor, "python -m node doctor"),
    )
}
