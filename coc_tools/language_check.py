"""Is a label in the language of its task? Multilingual models drift; a check of script and of little words sees it.

The script is that of most letters. Among Latin ones the language is the one whose function words occur most; a text
with too few of them, as short tasks are, is not judged.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter

# Frequent words that few of the other languages share.
_FUNCTION_WORDS = {
    "English": "the of and to is it with from on up off then before because must into its at that by for be",
    "German": "der die das und ist mit von auf dem den ein eine weil wird zu nicht wenn damit",
    "French": "le la les et est avec pour dans une du des sur car que il qui vers elle afin",
    "Spanish": "el la los las y es con para en una del sobre porque que se su hacia al por",
    "Italian": "il lo la gli e con per nel una del della sul perché che si verso alla deve essere",
    "Portuguese": "o os e com para em uma da sobre porque que na ao deve ser",
    "Dutch": "de het een en is met van op naar omdat die dat niet wordt voor te zijn",
}
_LANGUAGES = {name: frozenset(words.split()) for name, words in _FUNCTION_WORDS.items()}
# A language is recognised by at least this many function words, and half as many again as any other has.
_MIN_WORDS = 3


def script(text: str) -> str | None:
    """Script of most letters of a text ("LATIN", "CJK", "CYRILLIC", ...), None without letters."""
    letters = Counter(unicodedata.name(c, "UNKNOWN").split()[0] for c in text if c.isalpha())
    return letters.most_common(1)[0][0] if letters else None


def latin_language(text: str, min_words: int = _MIN_WORDS) -> str | None:
    """Language of a text in Latin letters, None where it is unclear."""
    words = Counter(re.findall(r"[^\W\d_]+", text.casefold()))
    scores = Counter({name: sum(words[w] for w in known) for name, known in _LANGUAGES.items()})
    (best, most), (_, second) = scores.most_common(2)
    return best if most >= min_words and most >= 1.5 * second else None


def language_problem(task: str, text: str) -> str | None:
    """What is wrong with the language of a label, in words for the model; None if nothing is."""
    wanted, found = script(task), script(text)
    if None not in (wanted, found) and wanted != found:
        return f"written in {found.title()} letters, and the task in {wanted.title()} ones: use the task's language"
    if wanted != "LATIN":
        return None
    # Two function words are few, but a task is short: "push the puck to a goal".
    wanted, found = latin_language(task, min_words=2), latin_language(text)
    if None not in (wanted, found) and wanted != found:
        return f"written in {found}, and the task in {wanted}: use the task's language"
    return None
