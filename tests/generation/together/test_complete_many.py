"""Many requests: each text is what it would be alone, under the index of its request."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gptcli import Completed, LanguageModel, Request
from gptcli.errors import ContextOverflow, InputError, UsageError
from tests.generation.outcomes import facts, outcome

REQUESTS = [
    Request("In a small town", max_tokens=12, seed=3, temperature=1.5, ignore_eos=True),
    Request([5, 6, 7], max_tokens=3, temperature=0.0, seed=5, ignore_eos=True),
    Request("The clockmaker had", max_tokens=20, seed=9, stop=["e", "<"]),
    Request("Yes or no?", choices=["yes", "no"], seed=1),
    Request("12 small bells", max_tokens=5, seed=4, logprobs=2, ignore_eos=True),
]


def alone(lm: LanguageModel, request: Request) -> tuple[object, ...]:
    """The facts of a request that runs alone."""
    events = lm.generate(
        request.prompt,
        max_tokens=request.stopping.max_tokens,
        stop=request.stopping.strings,
        ignore_eos=request.stopping.ignore_eos,
        logprobs=request.logprobs,
        choices=request.constraint.choices if request.constraint else (),
        **request.given,
    )
    return facts(*outcome(events))


def test_each_text_is_what_it_would_be_alone(tiny: LanguageModel) -> None:
    answers = dict(tiny.complete_many(REQUESTS))
    found = {index: facts(each.data, each.finished) for index, each in answers.items() if isinstance(each, Completed)}
    assert found == {index: alone(tiny, request) for index, request in enumerate(REQUESTS)}


def test_texts_come_as_they_end_or_in_the_order_of_their_requests(tiny: LanguageModel) -> None:
    requests = [Request("In", max_tokens=count, ignore_eos=True) for count in (30, 1, 20, 2, 3)]
    assert [index for index, _ in tiny.complete_many(requests)] == [1, 3, 4, 2, 0]
    assert [index for index, _ in tiny.complete_many(requests, ordered=True)] == [0, 1, 2, 3, 4]
    assert [index for index, _ in tiny.complete_many(requests, parallel=1)] == [0, 1, 2, 3, 4]


def test_a_request_that_fails_has_its_error_and_the_others_go_on(tiny: LanguageModel) -> None:
    requests = [
        Request("In a", max_tokens=2, ignore_eos=True),
        Request([3] * 300),
        Request([9999]),
        InputError("line 4: not JSON"),
        Request([1] * 250, max_tokens=20, ignore_eos=True, overflow="error"),
        Request("small", max_tokens=2, ignore_eos=True),
    ]
    answers = dict(tiny.complete_many(requests))
    kinds = {index: type(answer) for index, answer in answers.items()}
    assert kinds == {0: Completed, 1: ContextOverflow, 2: UsageError, 3: InputError, 4: ContextOverflow, 5: Completed}
    assert answers[3] is requests[3]


def test_an_error_among_requests_is_given_before_the_next_is_taken(tiny: LanguageModel) -> None:
    taken = list[int]()

    def answers() -> Iterator[InputError]:
        for number in range(9):
            taken.append(number)
            yield InputError(f"line {number}")

    given = tiny.complete_many(answers(), cancelled=lambda: len(taken) > 3)
    assert [(index, len(taken)) for index, _ in given] == [(0, 1), (1, 2), (2, 3), (3, 4)]


def test_a_value_out_of_range_is_an_error_of_the_request_itself() -> None:
    with pytest.raises(UsageError, match="top-p"):
        Request("In", top_p=0.0)


def test_requests_are_taken_when_there_is_room_for_them(tiny: LanguageModel) -> None:
    taken = 0

    def endless() -> Iterator[Request]:
        nonlocal taken
        while True:
            taken += 1
            yield Request("In a", max_tokens=3, ignore_eos=True)

    answers = tiny.complete_many(endless(), parallel=3)
    for read in range(1, 20):
        next(answers)
        assert taken <= read + 4


def test_a_source_without_a_request_yet_is_asked_again_while_texts_run(tiny: LanguageModel) -> None:
    request = Request("In a", max_tokens=3, ignore_eos=True)
    answers = tiny.complete_many(iter([None, request, None, None, request, None]))
    assert [(index, type(answer)) for index, answer in answers] == [(0, Completed), (1, Completed)]


def test_an_answer_waits_for_no_request_that_is_not_there_yet(tiny: LanguageModel) -> None:
    def slow() -> Iterator[Request | None]:
        yield Request("In a", max_tokens=3, ignore_eos=True)
        while True:
            yield None

    index, answer = next(tiny.complete_many(slow()))
    assert index == 0 and isinstance(answer, Completed)


def test_once_cancelled_running_texts_end_and_no_other_begins(tiny: LanguageModel) -> None:
    asked = 0

    def cancelled() -> bool:
        nonlocal asked
        asked += 1
        return asked > 5

    requests = [Request("In a", max_tokens=200, ignore_eos=True)] * 5
    answers = [answer for _, answer in tiny.complete_many(requests, parallel=2, cancelled=cancelled)]
    ends = [answer.finished for answer in answers if isinstance(answer, Completed)]
    assert [end.reason for end in ends] == ["interrupt"] * len(ends)
    assert 0 < len(ends[0].ids) < 200 and len(ends) < 5
