"""From documentation markup to plain paragraphs, and from paragraphs to answers.

Documentation strings hold tables, grammar and examples between their sentences. A
model this small can learn one thing, so everything that is not a sentence is dropped.
The word lists are in words.toml.
"""

import functools
import inspect
import pathlib
import re
import tomllib

_BULLET = re.compile(r"^\s*(?:[-*+•]|\d+[.)])\s+")
_NOT_PROSE = re.compile(r">>>|^\s*[:@]\w+|::=|[-=*~_+]{4,}|\|.*\||^\s*\.\. |https?://", re.MULTILINE)
_LINK = re.compile(r"\s*[<(]https?://[^\s>)]*[>)]")
_WORD = re.compile(r"[A-Za-z][A-Za-z']*")
_TYPOGRAPHY = str.maketrans(
    {"‘": "'", "’": "'", "“": '"', "”": '"', "–": "-", "—": "-", "…": "...", " ": " "}
)
_WORDS = tomllib.loads(pathlib.Path(__file__).with_name("words.toml").read_text(encoding="utf-8"))
_MISSING_IS: dict[str, str] = _WORDS["missing_is"]
_SECOND_VERB = re.compile(
    r"\b(and|or|then) (call|close|create|exit|put|raise|read|remove|return|wait|write|yield)\b"
)


@functools.cache
def words(name: str) -> frozenset[str]:
    """A word list of words.toml, by its name there."""
    return frozenset(_WORDS[name].split())


def _join_lines(lines: list[str]) -> str:
    """One wrapped block as one line; the items of a list stay on lines of their own."""
    items: list[str] = []
    for line in lines:
        if _BULLET.match(line):
            items.append("- " + _BULLET.sub("", line).strip())
        elif items:
            items[-1] += " " + line.strip()
        else:
            items.append(line.strip())
    return "\n".join(items)


def is_english(paragraph: str) -> bool:
    """Whether a paragraph reads as sentences: enough words, mostly letters, common words among them."""
    found = _WORD.findall(paragraph)
    if len(found) < 4 or _NOT_PROSE.search(paragraph):
        return False
    letters = sum(c.isalpha() or c == " " for c in paragraph)
    familiar = sum(w.lower() in words("common") for w in found)
    return letters >= 0.85 * len(paragraph) and familiar >= 0.15 * len(found)


def paragraphs(text: str) -> list[str]:
    """The English paragraphs of a docstring or of a plain text file, each as one line (lists: one an item)."""
    text = inspect.cleandoc(text).translate(_TYPOGRAPHY)
    text = _LINK.sub("", text.encode("ascii", "ignore").decode())
    found = []
    for block in re.split(r"\n\s*\n", text):
        joined = _join_lines(block.splitlines())
        joined = re.sub(r"``|`", "`", joined)
        joined = re.sub(r"(?<![\w*])\*{1,2}(\w[^*\n]*\w|\w)\*{1,2}(?![\w*])", r"\1", joined)
        joined = re.sub(r"[ \t]+", " ", joined).strip()
        if is_english(joined):
            found.append(joined)
    return found


def sentences(paragraph: str) -> list[str]:
    """A paragraph's sentences; an abbreviation ("e.g.") does not end one."""
    parts = re.split(r"(?<=[.!?])\s+(?=[A-Z`'\"(])", paragraph)
    joined: list[str] = []
    for part in parts:
        if joined and re.search(r"\b(?:e\.g|i\.e|etc|vs|cf|a\.k\.a)\.$", joined[-1]):
            joined[-1] += " " + part
        else:
            joined.append(part)
    return joined


def third_person(verb: str) -> str:
    """The verb's form after "it": tries, passes, joins."""
    if verb.endswith("y") and verb[-2] not in "aeiou":
        return verb[:-1] + "ies"
    return verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")


def as_statement(name: str, sentence: str) -> str:
    """A docstring's first sentence made one about `name`.

    "Join two paths." becomes "os.path.join joins two paths."; a sentence that starts with
    no verb keeps its words behind a colon: "heapq: Heap queue algorithm."
    """
    first, _, rest = sentence.partition(" ")
    word = first.lower()
    if signature := re.match(r"\S+\([^()]*\) -> (\w.*)", sentence):
        return f"{name} returns {signature[1]}"
    no_verb = not re.search(r"\b(?:is|are|was|has|can|may|must|will|does)\b", sentence)
    if word in words("verbs"):
        rest = _SECOND_VERB.sub(lambda found: f"{found[1]} {third_person(found[2])}", rest)
        return f"{name} {third_person(word)} {rest}"
    if word.removesuffix("s") in words("verbs"):
        return f"{name} {word} {rest}"
    if word in _MISSING_IS and no_verb:
        return f"{name} {_MISSING_IS[word]} {rest}"
    if first in ("A", "An") and no_verb:
        return f"{name} is {word} {rest}"
    if first in ("This", "These", "The", "If", "It") or name.rpartition(".")[2] in sentence.split()[:3]:
        return sentence
    return f"{name}: {sentence}"
