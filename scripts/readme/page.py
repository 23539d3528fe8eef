"""The picture of the page in the README: three real nodes, two questions, Debian's headless Chromium.

python scripts/readme/page.py
"""

import base64
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests" / "e2e")]

from browser import ENTER, browsers  # noqa: E402
from swarm import swarm, together  # noqa: E402

QUESTIONS = (
    "What is 12 + 30?",
    "A machine makes 28 nuts an hour for 7 hours a day, on 3 days. 45 are broken. How many good nuts are there?",
)
PICTURE = ROOT / "scripts" / "readme" / "page.webp"


def main() -> None:
    with tempfile.TemporaryDirectory() as home, swarm(Path(home) / "home") as nodes, browsers() as open_one:
        running = [nodes.start("--name", name, "--threads", "1") for name in ("atelier", "kitchen", "loft")]
        nodes.ready(*running)
        together(*running)
        window = open_one()
        window.look(1280, 860, "dark", scale=1.5)
        window.go(f"http://{running[0].http_address}/")
        window.wait("return document.querySelectorAll('#nodes li').length == 3", "all nodes are seen")
        window.run("document.getElementById('count').value = 9")
        for question in QUESTIONS:
            window.run("document.getElementById('prompt').focus()")
            window.type(question + ENTER)
            window.wait("return document.getElementById('send').textContent == 'Ask'", "an answer")
            time.sleep(3)
        shot = window.cdp("Page.captureScreenshot", {"format": "webp", "quality": 82})
        PICTURE.write_bytes(base64.b64decode(shot["data"]))
    print(f"{PICTURE.relative_to(ROOT)}: {PICTURE.stat().st_size >> 10} KB")


if __name__ == "__main__":
    main()
