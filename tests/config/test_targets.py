"""The targets of the project's own studies are the tokens that they were before answers were read as written text."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from circuitloom.config.circuits import parse_answer, parse_target
from circuitloom.corpus.chronicle.grammar import vocabulary
from circuitloom.corpus.prompt_text import read_prompt
from circuitloom.corpus.tokenizer import load_tokenizer, word_tokenizer

CONFIG = Path(__file__).parents[2] / "config"


def asked(study: str) -> Iterator[tuple[str, str]]:
    """Each prompt of a study and each answer that its target names."""
    circuits = yaml.safe_load((CONFIG / study).read_text())["circuits"]
    behaviours = circuits.get("behaviours", {}).values()
    prompts = [*circuits.get("prompts", {}).values()]
    for behaviour in behaviours:
        words = {slot: words[0] for slot, words in behaviour.get("slots", {}).items()}
        prompts += [
            {key: text.format(**words) if words else text for key, text in each.items()}
            for each in behaviour["prompts"]
        ]
    for prompt in prompts:
        target = parse_target(prompt.get("target", "logits"))
        yield from ((prompt["text"], answer) for answer in (target.token, target.against) if answer)


@pytest.mark.parametrize(("study", "count"), [("config.yaml", 13), ("studies/tiny.yaml", 2)])
def test_answers_of_generated_text_are_the_words_as_written(study: str, count: int) -> None:
    tokenizer = word_tokenizer(vocabulary())
    found = list(asked(study))
    assert len(found) == count
    for text, answer in found:
        token = read_prompt(text, tokenizer, 128).answer(answer)
        assert (token.name, token.note) == (parse_answer(answer).text, None)


def test_answers_of_stories_are_the_tokens_of_its_published_results(real_input: Path) -> None:
    tokenizer = load_tokenizer(str(real_input / "models" / "stories260K"))
    found = [
        read_prompt(text, tokenizer, 128).answer(answer) for text, answer in asked("studies/stories260k.yaml")
    ]
    assert [(each.token_id, each.name) for each in found] == [(358, " she"), (260, "he")]
    # written without quotes, the second answer is the word
    assert read_prompt("Lily was very sad. Then", tokenizer, 128).answer("he").token_id == 281
