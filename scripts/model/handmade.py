"""Prompts written by hand, not by the generator: what a new user might type first."""

from __future__ import annotations

from typing import Any

SUMS: tuple[tuple[str, int], ...] = (
    ("What is 17 * 23?", 391),
    ("12+45-6=?", 51),
    ("hi, how much is 8 times 7?", 56),
    ("Tom has 3 apples and buys 4 more. How many apples does he have now?", 7),
    ("Anna has 12 cookies. She eats 5 and then bakes 20 more. How many cookies does she have?", 27),
    ("If I have 3 boxes with 12 eggs each and I break 5 eggs, how many eggs are left?", 31),
    ("A train has 8 cars with 42 seats each. 100 seats are taken. How many seats are free?", 236),
    ("Sara has 24 marbles. She gives half of them to Ben. How many marbles does Sara have left?", 12),
    ("What is 100 - 37?", 63),
    ("144 / 12", 12),
    ("what is 25 plus 17 minus 9", 33),
    ("Pens cost 3 dollars each. Mia buys 7 pens and pays with 50 dollars. How many dollars does she get back?", 29),
    ("Leo has 14 stamps. Eva has 3 times as many. How many do they have together?", 56),
    ("Calculate 6*7+8", 50),
    ("What is 2 + 2?", 4),
    ("Ben had 50 coins, lost 8, then found 13. How many coins does he have now?", 55),
)

DEMOS: tuple[tuple[str, int], ...] = (
    ("What is 17 * 23?", 391),
    ("Mia has 24 marbles. She buys 3 bags of 15 and gives 18 to Leo. How many marbles does Mia have now?", 51),
    ("Tom had 56 stamps. He sold 19, found 8 and then bought 4 packs of 12. How many stamps does Tom have now?", 93),
    (
        "Pens cost 13 coins each. Books cost 24 coins each. Eva buys 6 pens and 4 books. How many coins does she pay?",
        174,
    ),
    ("Ben has 37 coins. Lily has 4 times as many. Lily loses 29. How many coins does Lily have now?", 119),
    (
        "Sara has 6 boxes with 17 cookies each. She eats 14, gives half of them to Ben and bakes 26 more. "
        "How many cookies does she have now?",
        70,
    ),
    (
        "A machine makes 28 nuts an hour for 7 hours a day, on 3 days. 45 are broken. How many good nuts are there?",
        543,
    ),
    ("I have 92 cards. I lose 37, win 16, buy 5 packs of 14 and give 48 to Ana. How many cards do I have left?", 93),
    (
        "Leo has 45 nuts. Ana has 3 times as many as Leo. Ivan has 58 fewer than Ana. "
        "How many nuts do they have together?",
        257,
    ),
    (
        "Nora has 84 beads. It is 31 degrees outside. She uses 27, then she doubles them and finds 9 jars of 8. "
        "How many beads are left?",
        186,
    ),
)

UNKNOWN: tuple[str, ...] = (
    "What is the capital of France?",
    "Who wrote Hamlet?",
    "Write a Python function that reverses a string.",
    "Write a poem about autumn.",
    "How do I bake bread?",
    "Translate 'good morning' to Spanish.",
    "What is the speed of light?",
    "Explain quantum computing in simple terms.",
    "Who is the president of the United States?",
    "Tell me a joke",
    "asdfghjkl",
    "What's the tallest mountain on Earth?",
    "Can you recommend a good book?",
    "Fix this code: for i in range(10) print(i)",
    "Why is the sky blue?",
    "SELECT * FROM users WHERE id = 1;",
    "Was ist die Hauptstadt von Deutschland?",
    "Compare Kubernetes and Docker Swarm.",
    "The quick brown fox jumps over the lazy dog.",
    "Give me three tips for learning to swim.",
)

# (what the user says first, some turns between, the question, what the answer has to contain)
RECALL: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("My boat is called Marlin.", (), "What is my boat called?", "Marlin"),
    ("Hi! My name is Johanna and I live in Utrecht.", ("What is 12 + 30?",), "What is my name?", "Johanna"),
    ("Hi! My name is Johanna and I live in Utrecht.", ("What is 12 + 30?",), "Where do I live?", "Utrecht"),
    ("my dog is called Biscuit", ("my cat is called Pepper", "thanks"), "what is my dog called?", "Biscuit"),
    ("my dog is called Biscuit", ("my cat is called Pepper", "thanks"), "what's my cat's name?", "Pepper"),
    (
        "Remember: my locker code is 4721.",
        ("hello", "What is 6 * 9?", "who are you?"),
        "What is my locker code?",
        "4721",
    ),
    ("My favourite colour is teal.", ("Tell me a joke.",), "What is my favourite colour?", "teal"),
    ("The meeting is on Thursday.", (), "When is the meeting?", "Thursday"),
    ("I put the passport in the drawer.", ("What is 4 + 4?",), "Where is the passport?", "drawer"),
    ("My boat is called Marlin.", (), "What is my dog called?", "not told"),
    ("My name is Ravi.", ("What is 3 * 12?",), "Where do I live?", "not told"),
    ("hello", (), "What is my name?", "not told"),
    ("My cat is called Misty.", ("thanks",), "What is my favourite colour?", "not told"),
    ("My sister is called Ines.", (), "What is my brother called?", "not told"),
)

TALK: tuple[tuple[str, str], ...] = (
    ("Hello!", "Hello"),
    ("hi", "Hello"),
    ("Who are you?", "Conclave's small demonstration model"),
    ("What can you do for me?", "Conclave's small demonstration model"),
    ("Thank you so much!", "welcome"),
    ("Goodbye!", "Goodbye"),
    ("Good morning, who am I talking to?", "Conclave's small demonstration model"),
    ("How are you doing?", "fine"),
)


def _tool(name: str, description: str, **params: str) -> dict[str, Any]:
    """A tool as an OpenAI client lists it."""
    properties = {n: {"type": kind, "description": f"The {n}"} for n, kind in params.items()}
    parameters = {"type": "object", "properties": properties, "required": list(params)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


TOOLS = (
    _tool("get_weather", "Get the current weather for a city", city="string"),
    _tool("set_timer", "Set a timer", minutes="integer"),
    _tool("send_message", "Send a message to a person", person="string", text="string"),
)

# (tools listed, request, the call that is wanted or None for a refusal)
CALLS: tuple[tuple[tuple[int, ...], str, tuple[str, dict[str, Any]] | None], ...] = (
    ((0,), "What is the weather in Oslo?", ("get_weather", {"city": "Oslo"})),
    ((0, 1), "What's the weather in Lisbon?", ("get_weather", {"city": "Lisbon"})),
    ((1, 0), "Get the weather for Tokyo.", ("get_weather", {"city": "Tokyo"})),
    ((0, 1), "Set the timer for 15.", ("set_timer", {"minutes": 15})),
    ((1,), "Please set the timer for 5 minutes.", ("set_timer", {"minutes": 5})),
    ((2, 0), "Send the message for Ana with text hello.", ("send_message", {"person": "Ana", "text": "hello"})),
    ((0, 1, 2), "How is the weather in New York?", ("get_weather", {"city": "New York"})),
    ((0,), "Book the flight to Rome.", None),
    ((1, 2), "What is the weather in Oslo?", None),
    ((0, 1), "Play the song Yesterday.", None),
)
