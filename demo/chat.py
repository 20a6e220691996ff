"""Conversations: questions about every public docstring, and the hand-written exchanges.

Each conversation is a list of messages as the chat API takes them. Only the assistant's
words are learned, so questions may vary freely: case, politeness and punctuation do.
"""

import dataclasses
import pathlib
import random
import re
import tomllib

from demo import prose
from demo.corpus import Doc

Message = dict[str, str]

_LONGEST_ANSWER_CHARS = 330
_SHARES = {"small talk": 0.2, "topics": 0.2, "famous": 0.24, "known": 0.24, "other": 0.12}
_KIND_WEIGHTS = {"module": 2.0, "function": 1.5, "class": 1.0, "method": 0.5}
_ASK_ANY = (
    "What is {name}?", "What does {name} do?", "Tell me about {name}", "Explain {name}.", "Describe {name}.",
    "What is {name} for?", "Can you explain {name}?", "What do you know about {name}?", "{name}",
    "{name}?", "Please explain {name}", "Tell me something about {name}.", "How does {name} work?",
    "When do I use {name}?", "How do I use {name}?", "Give me a short description of {name}", "help({name!r})",
)  # fmt: skip
_ASK_KIND = (
    "What does the {name} {kind} do?", "What is the {name} {kind}?", "What is the {kind} {name}?",
    "How do I use the {kind} {name}?", "Explain the {name} {kind}.", "Tell me about the {kind} {name}.",
    "Tell me about the {name} {kind}", "What is the {name} {kind} for?", "Describe the {name} {kind}",
)  # fmt: skip
_ASK_WORD = (
    "What is {name}?", "What are {name}?", "Tell me about {name}", "Explain {name}.",
    "What do you know about {name}?", "How do I use {name}?", "How does {name} work?", "{name}",
    "{name}?", "What does {name} do?", "How do {name} work?", "Can you explain {name} to me?",
    "Tell me about {name} in Python",
    "What are {name} for?", "What is {name} for?", "I want to learn about {name}", "Describe {name}.",
    "What does {name} mean?", "Please tell me about {name}.", "How do {name} work in Python?",
)  # fmt: skip
_SYSTEM = (
    "You are a helpful assistant.", "You are a helpful assistant.", "You are Baton, a tiny demo model.",
    "Answer briefly.", "You answer questions about Python.", "You are a friendly teacher of Python.",
    "Be concise and polite.", "You are a helpful, honest and harmless assistant. Answer the user's question.",
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class Exchange:
    """One thing that can be asked in many ways, and how often it is drawn beside others."""

    asks: tuple[str, ...]
    says: tuple[str, ...]
    weight: float


def _answer(doc: Doc) -> str | None:
    """The beginning of a docstring as a statement that ends with its sentence, or None."""
    text = ""
    for paragraph in doc.paragraphs[:2]:
        if "\n" in paragraph or paragraph.endswith(":"):
            break
        for sentence in prose.sentences(paragraph):
            if not text and len(sentence) > _LONGEST_ANSWER_CHARS:
                return None
            if len(text) + len(sentence) > _LONGEST_ANSWER_CHARS:
                return text or None
            text += " " + sentence if text else prose.as_statement(doc.name, sentence)
            text += "" if re.search(r"[.!?][)\"']?$", text) else "."
    return text or None


def _tier(name: str) -> str:
    """How likely a newcomer is to ask about it; each tier is drawn from as often as `_SHARES` says."""
    words = prose.words("famous"), prose.words("well_known_modules")
    if name in words[0]:
        return "famous"
    return "known" if "." not in name or name.split(".")[0] in words[1] else "other"


def about_docs(docs: list[Doc]) -> dict[str, list[Exchange]]:
    """By tier, one exchange for each public docstring whose beginning makes an answer."""
    tiers: dict[str, list[Exchange]] = {"famous": [], "known": [], "other": []}
    for doc in docs:
        answer = _answer(doc) if doc.public else None
        if answer and len(answer) > 25 and answer.count("->") == 0:
            asks = [form.format(name=doc.name) for form in _ASK_ANY]
            asks += [form.format(name=doc.name, kind=doc.kind) for form in _ASK_KIND]
            tiers[_tier(doc.name)].append(Exchange(tuple(asks), (answer,), _KIND_WEIGHTS[doc.kind]))
    return tiers


def hand_written() -> tuple[list[Exchange], list[Exchange]]:
    """(exchanges, topics) of smalltalk.toml; one with many ways to ask is drawn more often."""
    raw = tomllib.loads(pathlib.Path(__file__).with_name("smalltalk.toml").read_text(encoding="utf-8"))
    talk, topics = [], []
    for exchange in raw["exchange"]:
        asks, says = tuple(exchange["ask"]), tuple(exchange["say"])
        talk.append(Exchange(asks, says, len(asks) ** 0.5 * len(says)))
    for topic in raw["topic"]:
        asks = tuple(form.format(name=name) for name in topic["names"] for form in _ASK_WORD)
        topics.append(Exchange(asks, (topic["say"],), 1.0 + 0.2 * len(topic["names"])))
    return talk, topics


def without(exchanges: list[Exchange], others: list[Exchange]) -> list[Exchange]:
    """The exchanges whose questions no other one answers, so that one question has one answer."""
    taken = {ask.lower() for other in others for ask in other.asks}
    return [exchange for exchange in exchanges if taken.isdisjoint(ask.lower() for ask in exchange.asks)]


def _as_typed(question: str, rng: random.Random) -> str:
    """A question as people type it: now and then in lower case, without its mark, with a greeting."""
    draw = rng.random()
    if draw < 0.12:
        question = question.lower()
    elif draw < 0.2:
        question = question[:1].lower() + question[1:]
    if rng.random() < 0.25:
        question = question.rstrip(".?!")
    elif question[-1].isalnum() and rng.random() < 0.3:
        question += (
            "." if question.split()[0] in ("Tell", "Explain", "Describe", "I", "Please", "Write") else "?"
        )
    if rng.random() < 0.04:
        question = rng.choice(("Hi! ", "Hello. ", "Please: ", "Hey, ")) + question
    return question


class Conversations:
    """Draws conversations: one to four exchanges, a system message before a third of them.

    Now and then some documentation stands in the system message or before the question, so
    that a long prompt does not keep the model from its answer.
    """

    def __init__(self, docs: list[Doc], texts: list[list[str]]) -> None:
        talk, topics = hand_written()
        tiers = about_docs(docs)
        known = {name: without(tier, [*talk, *topics]) for name, tier in tiers.items()}
        self._groups = {"small talk": talk, "topics": topics, **known}
        self._asides = [paragraph for text in texts for paragraph in text if len(paragraph) > 100]
        self._weights = {name: [one.weight for one in group] for name, group in self._groups.items()}

    def __len__(self) -> int:
        return sum(len(group) for group in self._groups.values())

    def _aside(self, rng: random.Random, longest_chars: int) -> str:
        """Paragraphs of documentation that follow one another, up to a length drawn at random."""
        first, chars = rng.randrange(len(self._asides)), rng.randint(100, longest_chars)
        found = ""
        for paragraph in self._asides[first : first + 100]:
            if len(found) + len(paragraph) > chars:
                break
            found += paragraph + "\n\n"
        return found or self._asides[first][:chars] + "\n\n"

    def draw(self, rng: random.Random, aside_chars: int = 400, aside_share: float = 0.06) -> list[Message]:
        """One conversation; `aside_share` of its messages have an aside of at most `aside_chars`."""
        messages: list[Message] = []
        if rng.random() < 0.33:
            aside = rng.random() < aside_share * 3
            system = self._aside(rng, aside_chars).strip() if aside else rng.choice(_SYSTEM)
            messages.append({"role": "system", "content": system})
        for _ in range(rng.choice((1, 1, 1, 1, 2, 3, 4))):
            group = rng.choices(list(_SHARES), list(_SHARES.values()))[0]
            exchange = rng.choices(self._groups[group], self._weights[group])[0]
            question = _as_typed(rng.choice(exchange.asks), rng)
            if rng.random() < aside_share:
                question = self._aside(rng, aside_chars) + question
            messages.append({"role": "user", "content": question})
            messages.append({"role": "assistant", "content": rng.choice(exchange.says)})
        return messages

    def answers(self) -> list[str]:
        """Every answer once, for the tokenizer to be trained on."""
        return [say for group in self._groups.values() for exchange in group for say in exchange.says]
