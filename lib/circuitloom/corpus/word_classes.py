"""Classes of words that can be told from their spelling: closed classes of English, numbers, punctuation, affixes."""

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

WORD_LISTS: Mapping[str, frozenset[str]] = {
    name: frozenset(words.split())
    for name, words in {
        "articles": "a an the",
        "determiners": "a an the this that these those each every either neither some any no all both another such",
        "prepositions": "about above across after against along among around at before behind below beneath beside "
        "between beyond by down during for from in inside into like near of off on onto out outside over past since "
        "through throughout to toward towards under until up upon with within without",
        "pronouns": "i me you he him she her it we us they them myself yourself himself herself itself ourselves "
        "themselves",
        "possessives": "my your his her its our their mine yours hers ours theirs",
        "forms of be": "am is are was were be been being",
        "forms of have": "have has had having",
        "forms of do": "do does did doing done",
        "modal verbs": "can could may might must shall should will would",
        "conjunctions": "and but or nor for yet so because although though while if unless than whether",
        "question words": "who whom whose what which when where why how",
        "negations": "not no never nor neither none nothing nobody n't",
        "number words": "one two three four five six seven eight nine ten eleven twelve twenty thirty forty fifty "
        "hundred thousand million",
        "months": "january february march april may june july august september october november december",
        "weekdays": "monday tuesday wednesday thursday friday saturday sunday",
        "verbs of saying": "said says say asked replied cried answered told called shouted whispered added thought",
    }.items()
}
"""Maps the name of a closed class of English words to its words, in lower case."""
PATTERNS: Mapping[str, re.Pattern[str]] = {
    name: re.compile(pattern)
    for name, pattern in {
        "numbers": r"\d+([.,]\d+)*",
        "digits": r"\d",
        "two-digit numbers": r"\d\d",
        "years": r"1\d{3}|20\d{2}",
        "punctuation": r"[^\w\s]+",
        "opening brackets": r"[(\[{]",
        "closing brackets": r"[)\]}]",
        "quotation marks": r"[\"'\u201c\u201d\u2018\u2019«»`]+",
        "ends of sentences": r"[.!?]+[\"'\u201d\u2019)]*",
        "capitalised words": r"[A-ZÀ-Ý][a-zà-ÿ'\u2019]+",
        "words in capitals": r"[A-ZÀ-Ý]{2,}",
        "single letters": r"[^\W\d_]",
        "lower-case words": r"[a-zà-ÿ][a-zà-ÿ'\u2019-]+",
        "words with a hyphen": r"\w+-\w+",
    }.items()
}
"""Maps the name of a class to the pattern that the whole text of its tokens matches."""
WHITE_SPACE = "line breaks"
"""Class of tokens of white space with a line break."""
AFFIX_LENGTHS = (2, 3, 4)
"""Numbers of letters of affixes."""


def word_classes(texts: Sequence[str], affix_types: int = 8, affixes: int = 40) -> dict[str, list[bool]]:
    """Returns members[class][i]: whether texts[i], without the space before it, belongs to a class.

    Classes are those of `WORD_LISTS` and `PATTERNS`, and words with a common beginning or end: the `affixes` most
    frequent ones of each that at least `affix_types` of the texts share. Classes with fewer than two members are left
    out, and so is all but the first of several equal classes.
    """
    tests: dict[str, Callable[[str], bool]] = {}
    for name, words in WORD_LISTS.items():
        tests[name] = lambda text, words=words: text.lower() in words
    for name, pattern in PATTERNS.items():
        tests[name] = lambda text, pattern=pattern: pattern.fullmatch(text) is not None
    tests[WHITE_SPACE] = lambda text: "\n" in text and not text.strip()
    words = {text for text in texts if text.isalpha()}
    for ending in (True, False):
        counts = Counter(
            word[-n:] if ending else word[:n] for word in words for n in AFFIX_LENGTHS if len(word) >= n + 2
        )
        # of affixes with the same words the longest comes first, as "ing" before "ng"
        ranked = sorted(counts.items(), key=lambda each: (-each[1], -len(each[0]), each[0]))
        common = [affix for affix, n in ranked[:affixes] if n >= affix_types]
        for affix in common:
            name = f"words in -{affix}" if ending else f"words in {affix}-"
            tests[name] = lambda text, affix=affix, ending=ending: (
                len(text) >= len(affix) + 2
                and text.isalpha()
                and (text.endswith(affix) if ending else text.startswith(affix))
            )
    found: dict[str, list[bool]] = {}
    seen: set[tuple[bool, ...]] = set()
    for name, test in tests.items():
        members = [test(text) for text in texts]
        if sum(members) > 1 and tuple(members) not in seen:
            seen.add(tuple(members))
            found[name] = members
    return found
