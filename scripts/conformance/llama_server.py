"""llama-server's own tests of its OpenAI endpoints, of Anthropic's and of tokens, against a node: what passes, and what
does not apply and why.

    python scripts/conformance/llama_server.py [--write]

The tests are those of llama.cpp's source in the llama-cpp-python sdist (scripts/bench/build_rivals.sh unpacks it), in
an environment of their own. They are run as they are: `plugin.py` starts a node where they start llama-server. --write
puts the table into scripts/conformance/RESULTS.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "scripts"), str(ROOT / "tests" / "e2e")]

import installed  # noqa: E402
from install.paths import CACHE  # noqa: E402

FILES = (
    *("basic", "chat_completion", "completion", "embedding", "compat_oai_responses", "compat_anthropic", "security"),
    *("ignore_eos", "tokenize"),
)
NEEDS = (
    *("pytest~=8.3.3", "filelock~=3.16", "numpy~=2.2", "openai~=2.14.0", "requests~=2.32", "wget~=3.2"),
    "aiohttp~=3.9",
)
MODEL = ROOT / "node" / "models" / "bundled" / "conclave-demo.gguf"

# Why a test cannot pass here: (what its name matches, what its failure's line matches, the reason).
OWN = "llama-server's own endpoints, options and fields, which are not OpenAI's"
OTHER = "what its test model says, or how many tokens that takes, by heart"
REASONS: list[tuple[str, str, str]] = [
    (
        "^completion::|logit_bias|ignore_eos|apply_chat_template|token_count|proxy|load_split",
        "404|KeyError|/completion",
        OWN,
    ),
    ("^basic::(server_props|server_slots|no_ui|server_model_aliases|server_models)", "", OWN),
    ("timings|progress|telemetry|verbose|chat_template$|security::correct_api_key|static_assets|pooling_none", "", OWN),
    ("context_size_exceeded", "exceed_context_size_error", f"{OWN}: an error of type exceed_context_size_error"),
    ("embedding_error_prompt_too_long", "too large", f"{OWN}: the words of an error"),
    ("embedding_(mixed_input|content_text)", "400", f"{OWN}: texts and tokens in one list, objects, an empty text"),
    ("server_multiple_addresses", "", f"{OWN}: several addresses"),
    ("chat_completion::chat_completion(_cached_tokens|_stream)?($|\\[)", "", OTHER),
    ("with_openai_library|embedding_usage|logprobs|consistent|completion_stream", "assert|Unexpected output", OTHER),
    ("prefill|continue_final", "400", "an answer that the client has begun is not continued here"),
    ("local_media_file|anthropic_(vision|tool_result_with_image)", "", "models have no vision here"),
    ("anthropic_empty_messages", "", "a conversation without messages is refused"),
    ("tokenize_with_bos", "", OTHER),
    ("cors", "", "which pages may ask is decided otherwise: without an API key, pages of this machine and no others"),
]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("-k", default="", help="only tests of this name")
    args = parser.parse_args()
    tests = sorted((CACHE / "rivals").glob("*/source/tools/server/tests"))
    if not tests:
        sys.exit("llama.cpp's source is not here: run scripts/bench/build_rivals.sh first")
    python = installed.python("llama-server-tests", *NEEDS)
    with tempfile.NamedTemporaryFile(suffix=".json") as out:
        env = os.environ | {
            "PYTHONPATH": str(HERE),
            "CONFORMANCE_OUT": out.name,
            "CONFORMANCE_MODEL": str(MODEL),
            "CONFORMANCE_ROOT": str(ROOT),
            "CONFORMANCE_PYTHON": sys.executable,
        }
        command = [str(python), "-m", "pytest", "-q", "--no-header", "--tb=line"]
        command += ["-p", "plugin", "-p", "no:cacheprovider"]
        command += ["-k", args.k] if args.k else []
        files = [f"unit/test_{f}.py" for f in FILES]
        subprocess.run([*command, *files], cwd=tests[-1], env=env, check=False)
        found = json.loads(Path(out.name).read_text())
    text, failed = report(found)
    print(text)
    if args.write:
        (HERE / "RESULTS.md").write_text(text)
    return 1 if failed else 0


def report(found: list[dict[str, str]]) -> tuple[str, int]:
    """The results as Markdown, and how many tests failed without a known reason."""
    passed: dict[str, int] = defaultdict(int)
    apart: dict[str, list[str]] = defaultdict(list)
    failed: list[tuple[str, str]] = []
    for each in found:
        name = each["test"].removeprefix("unit/test_").replace(".py::test_", "::")
        if each["outcome"] == "passed":
            passed[name.split("::")[0]] += 1
        elif each["outcome"] == "skipped":
            apart["llama-server's own conditions skip it"].append(name)
        else:
            reason = next((r for n, x, r in REASONS if re.search(n, name) and re.search(x, each["line"])), "")
            if reason:
                apart[reason].append(name)
            else:
                failed.append((name, each["line"]))
    lines = [
        "# llama-server's own tests against a node",
        "",
        "`python scripts/conformance/llama_server.py --write`, llama.cpp as in the llama-cpp-python sdist.",
        "",
    ]
    lines += ["| file | passed |", "|---|---|", *(f"| {f} | {n} |" for f, n in passed.items()), ""]
    lines += [f"{sum(passed.values())} pass, {sum(map(len, apart.values()))} do not apply, {len(failed)} fail.", ""]
    for reason, names in sorted(apart.items()):
        bases = sorted({n.split("[")[0] for n in names})
        lines.append(f"* {len(names)}: {reason}: {', '.join(f'`{b}`' for b in bases)}")
    lines += [f"* **fails** `{name}`: {line}" for name, line in failed]
    return "\n".join(lines) + "\n", len(failed)


if __name__ == "__main__":
    sys.exit(main())
