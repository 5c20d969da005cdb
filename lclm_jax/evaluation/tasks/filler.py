"""Exchanges of an agent with its user and tools that state nothing anybody asks for."""

import random
from collections.abc import Callable, Sequence

Turn = tuple[str, str]  # role, text
Exchange = Sequence[Turn]

ACKNOWLEDGEMENTS = (
    *("Noted.", "Thank you, I have noted it.", "I will keep that in mind.", "Understood."),
    *("All right, it is in my notes.", "Good to know.", "I have written it down."),
)
LOOK_UPS = (
    *("I am looking at what came in.", "Let me check.", "One moment, I am checking."),
    *("I will see what the tools say.", "Checking the latest messages.", "I will ask the system."),
)
PEOPLE = (
    *("Amira", "Boris", "Chen", "Dolores", "Emeka", "Farah", "Gustav", "Hana", "Ivo", "Jun"),
    *("Katya", "Lars", "Miriam", "Noor", "Oskar", "Pilar", "Quinn", "Rosa", "Sunil", "Tove"),
)
CITIES = (
    *("Lisbon", "Oslo", "Nairobi", "Lima", "Osaka", "Turin", "Hobart", "Leeds", "Quito", "Riga"),
    *("Bergen", "Dakar", "Perth", "Gdansk", "Malaga", "Tampere"),
)
FILES = (
    *("report.txt", "notes.md", "budget.csv", "invoice.pdf", "agenda.md", "draft.docx"),
    *("parser.py", "index.html", "schema.sql", "config.toml", "results.json", "main.rs"),
)
TOPICS = (
    *("the quarterly figures", "the new contract", "the office move", "the training plan"),
    *("the travel rules", "the open invoices", "the customer survey", "the website texts"),
    *("the holiday calendar", "the insurance form", "the supplier list", "the data export"),
)
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday")
THINGS = (
    *("chairs", "laptops", "notebooks", "monitors", "parcels", "desks", "tickets", "badges"),
    *("cables", "keyboards", "posters", "folders"),
)
WEATHER = ("rain", "light wind", "sunshine", "fog in the morning", "clouds", "a dry day")
ADJECTIVES = ("short", "friendly", "clear", "formal", "careful", "simple", "brief", "polite")


def draw_exchange(rng: random.Random) -> Exchange:
    """Draw one to four turns."""
    return rng.choice(EXCHANGES)(rng)


def _write_mail(rng: random.Random) -> Exchange:
    person, topic = rng.choice(PEOPLE), rng.choice(TOPICS)
    tone, day = rng.choice(ADJECTIVES), rng.choice(DAYS)
    return [
        ("user", f"Write a {tone} mail to {person} about {topic}."),
        (
            "assistant",
            rng.choice(
                [
                    f"Dear {person}, could we talk about {topic} on {day}? Best regards",
                    f"Hello {person}, here is where we are with {topic}. I will write on {day}.",
                    f"Hi {person}, I have a question about {topic}. Is {day} a good day for it?",
                ]
            ),
        ),
    ]


def _read_file(rng: random.Random) -> Exchange:
    file, lines, topic = rng.choice(FILES), rng.randint(3, 900), rng.choice(TOPICS)
    answer = rng.choice(
        [
            f"The file has {lines} lines; most of them are about {topic}.",
            f"It is a file of {lines} lines. I can sum it up if you like.",
            f"There is nothing unusual in its {lines} lines.",
        ]
    )
    return [
        ("user", f"What is in {file}?"),
        ("assistant", "I am opening it."),
        ("tool", f"{file}: {lines} lines, last change {_time(rng)}"),
        ("assistant", answer),
    ]


def _compute(rng: random.Random) -> Exchange:
    count, price = rng.randint(2, 60), rng.randint(3, 250)
    thing = rng.choice(THINGS)
    return [
        ("user", f"What do {count} {thing} cost at {price} euros each?"),
        ("assistant", f"{count} {thing} at {price} euros cost {count * price} euros."),
    ]


def _ask_weather(rng: random.Random) -> Exchange:
    city, sky, degrees = rng.choice(CITIES), rng.choice(WEATHER), rng.randint(-5, 34)
    return [
        ("user", rng.choice([f"How is the weather in {city}?", f"Do I need a coat in {city}?"])),
        ("tool", f"weather in {city}: {sky}, {degrees} degrees"),
        ("assistant", f"In {city} you can expect {sky} at {degrees} degrees."),
    ]


def _run_tests(rng: random.Random) -> Exchange:
    file, passed, seconds = rng.choice(FILES), rng.randint(5, 400), rng.randint(1, 90)
    failed = rng.choice([0, 0, 1, 2])
    result = f"{failed} of them fail" if failed else "all of them pass"
    return [
        ("assistant", f"I have changed {file} and run the tests."),
        ("tool", f"{passed} passed, {failed} failed in {seconds} s"),
        ("assistant", f"There are {passed + failed} tests, and {result}."),
    ]


def _book(rng: random.Random) -> Exchange:
    city, day, person = rng.choice(CITIES), rng.choice(DAYS), rng.choice(PEOPLE)
    price = rng.randint(40, 700)
    return [
        ("user", f"Find a train to {city} on {day} for {person}."),
        (
            "tool",
            f"{rng.randint(1, 9)} connections to {city}, from {price} euros, first {_time(rng)}",
        ),
        ("assistant", f"The cheapest one to {city} costs {price} euros. Shall I book it?"),
        ("user", rng.choice(["Yes, please.", "Not yet.", "Ask me again tomorrow."])),
    ]


def _explain(rng: random.Random) -> Exchange:
    topic, person = rng.choice(TOPICS), rng.choice(PEOPLE)
    first, second = rng.choice(DAYS), rng.choice(DAYS)
    answer = rng.choice(
        [
            f"{person} collects the numbers until {first}, and we discuss them on {second}.",
            f"The first draft is due on {first}; {person} reads it before {second}.",
            f"Nothing is decided. {person} wanted to hear more opinions by {first}.",
        ]
    )
    return [("user", f"Where do we stand with {topic}?"), ("assistant", answer)]


def _remind(rng: random.Random) -> Exchange:
    topic, day, time = rng.choice(TOPICS), rng.choice(DAYS), _time(rng)
    return [
        ("user", f"Remind me of {topic} on {day} at {time}."),
        ("assistant", f"I will remind you on {day} at {time}."),
    ]


def _count(rng: random.Random) -> Exchange:
    thing, city, count = rng.choice(THINGS), rng.choice(CITIES), rng.randint(2, 500)
    return [
        ("user", f"How many {thing} are left in {city}?"),
        ("tool", f"stock in {city}: {count} {thing}"),
        ("assistant", rng.choice([f"There are {count} {thing} left.", f"{count}, as of today."])),
    ]


def _small_talk(rng: random.Random) -> Exchange:
    text = rng.choice(
        [
            f"Thanks! I am off to {rng.choice(CITIES)} until {rng.choice(DAYS)}.",
            f"Good, let us go on with {rng.choice(TOPICS)}.",
            f"{rng.choice(PEOPLE)} says hello, by the way.",
            "Very good.",
            "Thanks a lot.",
            f"It is {_time(rng)}, time for a break.",
        ]
    )
    return [("user", text)]


def _time(rng: random.Random) -> str:
    return f"{rng.randint(7, 19):02}:{rng.randint(0, 59):02}"


EXCHANGES: Sequence[Callable[[random.Random], Exchange]] = (
    *(_write_mail, _read_file, _compute, _ask_weather, _run_tests, _book, _explain, _remind),
    *(_count, _small_talk),
)
