import io
import json
from pathlib import Path

from rich.console import Console

from modelpress.suggestion_table import render_suggestions
from service.plan_documents import SuggestionsDocument

FOUND = json.loads((Path(__file__).parent / "suggestions.json").read_text())


def test_the_suggestions_of_these_tests_are_some_that_the_service_may_send():
    assert SuggestionsDocument.model_validate(FOUND).model_dump(mode="json") == FOUND


def test_suggestions_are_lines_with_what_each_costs():
    stream = io.StringIO()
    Console(file=stream, width=140, highlight=False).print(render_suggestions(FOUND))
    first = "quantize w8a16, group_size 128, target_bytes 500.00 MiB"
    rest = "100.00 MiB transformers"
    lines = [" ".join(line.split()) for line in stream.getvalue().splitlines()]

    assert lines[:3] == [
        "recipe size of the model loss peak memory opens with",
        f"{first} 498.77 MiB 48.7% 0.0051 {rest}, vllm",
        f"quantize w8a16, embeddings; output safetensors 381.47 MiB 37.2% 0.0093 {rest}",
    ]
    assert "predicted; the root mean square" in lines[4]


def test_what_a_service_sends_stays_text_on_the_terminal():
    found = json.loads(json.dumps(FOUND))
    found["suggestions"][0]["recipe"] = {"steps": [{"op": "quantize\x1b[31m", "x": "[red]"}]}
    stream = io.StringIO()

    Console(file=stream, width=140, highlight=False).print(render_suggestions(found))

    assert "\x1b[31m" not in stream.getvalue()
    assert "[red]" in stream.getvalue()
