"""What `gptcli generate` writes to stdout and stderr of a pipe, with a real, tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from gptcli import LanguageModel, TextDelta
from tests.cli.conftest import Cli, Result, Says

PROMPT = "In a small town"


def continuation(lm: LanguageModel, **settings: Any) -> bytes:
    """The text that the Python API generates greedily."""
    events = lm.generate(PROMPT, temperature=0.0, **settings)
    return b"".join(event.data for event in events if isinstance(event, TextDelta))


def test_stdout_is_the_continuation_and_nothing_else(generate: Cli, tiny: LanguageModel) -> None:
    result = generate(PROMPT, "-n", "40")
    assert (result.code, result.err) == (0, "")
    assert result.out == continuation(tiny, max_tokens=40)
    assert len(result.out) > 40


def test_bytes_that_are_no_text_reach_a_pipe_as_they_are(generate: Cli, says: Says) -> None:
    pieces = [b"\xff\xfe", b"\x00\x1b[31m\x9b", "‮ 👩‍🚀\r\n".encode(), b"[red]x[/b] :smile:\t" + b"w" * 300]
    says(*pieces)
    assert generate(PROMPT).out == b"".join(pieces)


def test_newline_ends_a_line_that_is_open(generate: Cli, says: Says) -> None:
    for pieces, out in ((["text"], b"text\n"), (["text\n"], b"text\n"), ([], b"")):
        says(*pieces)
        assert generate(PROMPT, "--newline").out == out


def test_echo_puts_the_prompt_first(generate: Cli, tiny: LanguageModel) -> None:
    assert generate(PROMPT, "-n", "8", "--echo").out == PROMPT.encode() + continuation(tiny, max_tokens=8)


def test_samples_stand_on_lines_of_their_own(generate: Cli, says: Says) -> None:
    says("text")
    assert generate(PROMPT, "--samples", "3").out == b"text\ntext\ntext"


def test_the_end_of_the_context_stops_the_text(generate: Cli) -> None:
    stopped = generate(PROMPT, "-n", "60", "-c", "24", "--ignore-eos")
    assert (stopped.code, stopped.out) == (0, generate(PROMPT, "-n", "-1", "-c", "24", "--ignore-eos").out)


def test_the_end_of_the_context_can_be_an_error_that_keeps_the_text(generate: Cli) -> None:
    given = (PROMPT, "-n", "60", "-c", "24", "--ignore-eos")
    result = generate(*given, "--overflow", "error")
    assert result.code == 6 and result.out and result.out in generate(*given).out
    assert result.err.startswith("gptcli: error: the context of 24 tokens is full\n")


def test_a_stop_text_across_tokens_is_not_shown(generate: Cli, tiny: LanguageModel) -> None:
    letter = tiny.tokenizer.token_bytes(70).decode()
    given = (PROMPT, "--logit-bias", "70=1000", "--stop", "not there", "--stop", letter * 3)
    assert generate(*given) == Result(0, b"", "")
    record = generate(*given, "--json").json
    assert (record["text"], record["finish_reason"], record["stop"]) == ("", "stop", letter * 3)


def test_a_forbidden_token_is_not_drawn_and_the_record_is_still_json(generate: Cli) -> None:
    [first] = generate(PROMPT, "-n", "1", "--json").json["ids"]
    record = generate(PROMPT, "-n", "1", "--json", "--logit-bias", f"{first}=-inf").json
    assert record["ids"] != [first]
    assert record["settings"]["logit_bias"] == [[first, None]]


def test_options_ban_tokens_and_lift_what_a_model_bans(generate: Cli) -> None:
    first, second = generate(PROMPT, "-n", "2", "--json").json["ids"]
    options = ["--suppress-tokens", f"1,{first}", "--bad-words-ids", "4,5", "--bad-words-ids", str(second)]
    record = generate(PROMPT, "-n", "2", "--json", *options, "--no-repeat-ngram-size", "2").json
    assert not {first, second} & {*record["ids"]}
    assert record["settings"]["bad_words_ids"] == [[4, 5], [second]]
    none = ["--suppress-tokens", "none", "--begin-suppress-tokens", "none", "--bad-words-ids", "none"]
    assert generate(PROMPT, "-n", "2", "--json", *none).json["ids"] == [first, second]
    assert generate(PROMPT, "--suppress-tokens", "x").code == 2


def test_the_end_of_text_is_ignored_on_demand(generate: Cli) -> None:
    end = ("--logit-bias", "2=1000", "-n", "5", "--json")
    stopped = generate(PROMPT, *end).json
    assert (stopped["finish_reason"], stopped["stop"], stopped["ids"]) == ("stop", "<|im_end|>", [])
    ignored = generate(PROMPT, *end, "--ignore-eos").json
    assert ignored["finish_reason"] == "length"
    assert len(ignored["ids"]) == 5 and 2 not in ignored["ids"]


def test_json_has_the_contracts_keys(generate: Cli, tiny: LanguageModel) -> None:
    result = generate(PROMPT, "-n", "8", "--json", "-s", "7")
    assert (result.code, result.err, result.out.count(b"\n")) == (0, "", 1)
    record = result.json
    assert list(record) == [
        "model", "prompt_tokens", "completion_tokens", "ids", "text", "finish_reason", "stop", "seed", "settings",
        "timings",
    ]  # fmt: skip
    assert list(record["timings"]) == [
        "load_s", "prefill_s", "ttft_s", "decode_s", "prefill_tokens_per_s", "decode_tokens_per_s",
    ]  # fmt: skip
    assert record["prompt_tokens"] == len(tiny.tokenizer.encode(PROMPT))
    assert record["completion_tokens"] == len(record["ids"]) == 8
    assert tiny.tokenizer.decode(record["ids"]).decode("utf-8", "replace") == record["text"]
    assert (record["finish_reason"], record["stop"], record["seed"]) == ("length", None, 7)
    assert (record["settings"]["temperature"], record["settings"]["max_tokens"]) == (0, 8)


def test_json_spells_what_is_no_character(generate: Cli, says: Says) -> None:
    says(b"\xffa\x1b\n")
    result = generate(PROMPT, "--json")
    assert result.json["text"] == "\ufffda\x1b\n" and b"\x1b" not in result.out


def test_a_draft_model_changes_nothing_but_the_figures(generate: Cli, tiny_model: Path) -> None:
    drafted = generate(PROMPT, "-n", "40", "--draft-model", tiny_model, "--stats")
    assert drafted.out == generate(PROMPT, "-n", "40").out
    assert " drafts kept · " in drafted.err


def test_a_draft_model_is_for_one_sample(generate: Cli, tiny_model: Path) -> None:
    refusal = "gptcli: error: --draft-model is for one sample"
    generate(PROMPT, "--draft-model", tiny_model, "--samples", "2").fails(2, refusal)


def test_logprobs_have_a_token_and_its_likeliest_alternatives(generate: Cli, tiny: LanguageModel) -> None:
    record = generate(PROMPT, "-n", "5", "--json", "--logprobs", "3").json
    assert [step["id"] for step in record["logprobs"]] == record["ids"]
    for step in record["logprobs"]:
        assert list(step) == ["id", "token", "bytes", "logprob", "top"]
        assert [list(token) for token in step["top"]] == [["id", "token", "bytes", "logprob"]] * 3
        assert bytes.fromhex(step["bytes"]) == tiny.tokenizer.token_bytes(step["id"])
        assert step["top"][0]["id"] == step["id"]  # greedily
        ordered = [token["logprob"] for token in step["top"]]
        assert ordered == sorted(ordered, reverse=True)


def test_logprobs_without_alternatives_are_the_tokens_alone(generate: Cli) -> None:
    steps = generate(PROMPT, "-n", "2", "--json", "--logprobs", "0").json["logprobs"]
    assert [step["top"] for step in steps] == [[], []]


def test_the_logprob_of_what_cannot_be_drawn_is_null(generate: Cli) -> None:
    [step] = generate(PROMPT, "-n", "1", "--json", "--logprobs", "999", "--ignore-eos").json["logprobs"]
    assert {token["id"]: token["logprob"] for token in step["top"]}[2] is None


def test_stats_are_one_line_on_stderr(generate: Cli) -> None:
    result = generate(PROMPT, "-n", "4", "--stats", "-s", "7")
    assert result.err.count("\n") == 1
    figures = result.err.rstrip().split(" · ")
    assert figures[0] == "4 tok"
    assert figures[3].endswith("/256 ctx")
    assert figures[4:] == ["length", "seed=7"]
    assert b"tok" not in result.out


def test_stats_may_be_json_or_silenced(generate: Cli) -> None:
    record = json.loads(generate(PROMPT, "-n", "4", "--stats=json", "-s", "7").err)
    assert (record["completion_tokens"], record["finish_reason"], record["seed"]) == (4, "length", 7)
    assert {"ttft_s", "decode_tokens_per_s", "prompt_tokens", "stop"} <= set(record)
    for stats in ("--stats", "--stats=json"):
        assert generate(PROMPT, "-n", "1", stats, "-q").err == ""


def test_markdown_in_a_pipe_is_the_models_text(generate: Cli, says: Says) -> None:
    says("# Title\n\n", "- a\n- b")
    assert generate(PROMPT, "--markdown").out == b"# Title\n\n- a\n- b"
