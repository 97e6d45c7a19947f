"""The explorer of a finished study: a prompt tried in a browser, and the command `circuitloom explore`."""

import os
import signal
import subprocess
import sys
import urllib.request

import pytest
from tests.explorer.browser import SECONDS, serving, visiting

from circuitloom.explorer.urls import link

PROMPT = "the war lasted from the year 17 43 to the year 17"


@pytest.fixture(scope="module")
def visit(finished, browser):
    with serving(finished.results) as address, visiting(browser, address) as visit:
        yield visit
        assert visit.problems == []


def test_a_prompt_runs_its_target_is_traced_and_its_features_are_edited(visit) -> None:
    visit.open("/try", "#prompt-run")
    visit.page.fill("input[placeholder^='a text']", PROMPT)
    visit.page.fill("input[placeholder^='none']", "logit 17 vs 18")
    visit.page.click("#prompt-run")
    visit.page.wait_for_selector("#prompt-token .ag-cell")
    visit.page.wait_for_selector("#circuit-graph svg", timeout=2000 * SECONDS)
    visit.settle()
    assert "relative error of the sums" in visit.text("#prompt-trace")
    assert visit.text("#prompt-status") == ""
    visit.page.click("button.token:nth-of-type(9)")
    visit.page.wait_for_function(
        "() => document.querySelector('#prompt-token h2').innerText.includes('position 8')"
    )
    visit.settle()
    visit.page.click("#prompt-grid .ag-row[row-index='0'] .ag-cell[col-id=activation]")
    visit.page.wait_for_function("() => document.querySelector('#prompt-features').value.endsWith('@8')")
    visit.page.click("#prompt-edit")
    visit.page.wait_for_selector("#prompt-edited table")
    edited = visit.text("#prompt-edited")
    assert "at position 8" in edited
    assert float(edited.split("KL(before || after) ")[1].split()[0]) > 0
    visit.settle()
    visit.screenshot("tiny-try")
    # the address alone restores all of it
    visit.open(visit.page.url.removeprefix(visit.address), "#prompt-edited table")
    assert visit.text("#prompt-edited") == edited


def test_text_is_generated_while_the_chosen_features_are_edited(visit) -> None:
    visit.open(
        link("try", prompt=PROMPT, features="0/1,1/3", kind="scale", strength=3), "#prompt-edited table"
    )
    visit.page.click("#generate-add")
    visit.page.wait_for_function(
        "() => document.querySelector('#generate-edits').value === 'scale 0/1,1/3=3'"
    )
    visit.page.fill("#generate-edits", "scale 0/1,1/3=3; add 1/5=9")
    visit.page.fill("input[id*=tokens]", "12")
    visit.page.click("#generate-run")
    visit.page.wait_for_selector("#generate-texts .text")
    text = visit.text("#generate-texts")
    assert text.count(PROMPT) == 2 and float(text.split("mean ")[1].split()[0]) > 0
    visit.settle()
    visit.screenshot("tiny-generate")
    assert "tokens=12" in visit.page.url and "seed" not in visit.page.url
    # the address alone restores all of it
    visit.open(visit.page.url.removeprefix(visit.address), "#generate-texts .text")
    assert visit.text("#generate-texts") == text


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"prompt": PROMPT, "edits": "set 0/1"}, "cannot be read; write set LAYER/NUMBER=VALUE"),
        ({"prompt": PROMPT, "edits": "ablate 0/1", "tokens": "x"}, "tokens 'x': a whole number is needed"),
        (
            {"prompt": PROMPT, "edits": "ablate 0/1", "tokens": "9999"},
            "more are asked for, the model's context is",
        ),
        ({"prompt": "zebra zebra"}, "the tokenizer does not know the word 'zebra'"),
        ({"prompt": PROMPT, "target": "nonsense"}, "is no target; write logits"),
        ({"prompt": PROMPT, "target": "feature 0/9999"}, "layer 0 has features 0 to 127"),
        ({"prompt": PROMPT, "features": "0/1, x"}, "is no feature; write LAYER/NUMBER"),
        ({"prompt": PROMPT, "features": "0/1@99"}, "position 99 is outside the prompt"),
        ({"prompt": PROMPT, "run": "none"}, "there are no transcoders none; choose from"),
    ],
)
def test_an_invalid_prompt_or_edit_gives_one_line_with_a_remedy(visit, params, message) -> None:
    visit.open(link("try", **params), "#page .error")
    assert message in visit.text("#page .error")


def test_scaling_a_feature_by_one_changes_nothing(visit) -> None:
    visit.open(link("try", prompt=PROMPT, features="0/1", kind="scale", strength=1), "#prompt-edited table")
    kl = float(visit.text("#prompt-edited").split("KL(before || after) ")[1].split()[0])
    assert abs(kl) < 1e-6


def test_the_server_runs_until_it_is_interrupted(finished) -> None:
    command = [sys.executable, "-m", "circuitloom", "explore", "tiny", "--port", "0"]
    process = subprocess.Popen(
        command,
        cwd=finished.folder,
        env=finished.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    address = line.split(" at ")[1].split()[0]
    assert address.startswith("http://127.0.0.1:")
    assert b"circuitloom" in urllib.request.urlopen(address, timeout=SECONDS).read()
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=SECONDS)
    assert (process.returncode, errors) == (0, "")


def test_a_study_that_has_not_run_is_refused_in_one_line(finished) -> None:
    run = finished.circuitloom("explore", "none")
    assert run.returncode == 1
    assert run.stderr == (
        "circuitloom: explore: there is no catalogue at results/none; make it with `snakemake catalog`\n"
    )
