"""The generated corpora by name."""

from ..config import corpus as config
from . import guilds
from .chronicle import concepts, grammar
from .generated import Grammar

GRAMMARS = {
    each.name: each
    for each in (
        Grammar("chronicle", grammar.vocabulary, grammar.write_episode, concepts.CONCEPTS),
        Grammar("guilds", guilds.vocabulary, guilds.write_document, guilds.CONCEPTS),
    )
}
"""Maps the values of `corpus.source` to the grammars of generated text."""


def grammar_of(section: config.Corpus) -> Grammar | None:
    """Returns the grammar that generates the text of a corpus. None for real text."""
    return GRAMMARS.get(section.source)
