"""From hand-made answers to metrics that can be told by hand, and n/a where there is none."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from scripts.datasets.attributions import PUBLISHERS
from scripts.datasets.pairs import DataSet
from scripts.datasets.record import DataError, Record
from scripts.evaluation.answer_file import SYSTEMS, AnswerRow, Answers
from scripts.evaluation.comparison import MIN_DIAGNOSTIC
from scripts.evaluation.diagnostic import DiagnosticItem
from scripts.evaluation.scores import score

NUM = 12
PUBLISHER = PUBLISHERS["GHR"]


def pair(split: str, number: int, **more: Any) -> Record:
    fields = {
        "id": f"{split}{number}",
        "question": f"What is disease number {number}?",
        "answer": f"Disease {number} is a dermatitis that makes the {number} skin red and itchy.",
        "specialty": "dermatology",
        "file": "dermatology",
        "source": "MedQuAD/GHR",
        "where": f"line {number}",
        "qtype": "information" if number % 2 else "symptoms",
    }
    return Record(**fields | more)


def dataset(**more: Any) -> DataSet:
    train = tuple(pair("train", number, **more) for number in range(100, 100 + NUM))
    validation = tuple(pair("validation", number, **more) for number in range(NUM))
    return DataSet(train, validation, {"dermatology.jsonl": "0" * 64})


def row(id_: str, system: str, answer: str, **more: Any) -> AnswerRow:
    fields = {
        "num_tokens": 9,
        "hit_limit": False,
        "nll": 20.0 if system == "base" else 10.0,
        "num_reference_tokens": 10,
        "time_s": 0.5 if system == "base" else 0.6,
        "device": "cpu",
    }
    return AnswerRow(id=id_, system=system, answer=answer, **fields | more)


def answers(
    data: DataSet, said: Callable[[str, Record], str], extra: tuple[str, ...] = (), **header: Any
) -> Answers:
    """Each system says `said(system, pair)`, and "Marble fever" to the questions of `extra`."""
    rows = {
        system: {p.id: row(p.id, system, said(system, p)) for p in data.validation}
        | {id_: row(id_, system, "It is Marble fever.", nll=None) for id_ in extra}
        for system in SYSTEMS
    }
    about = {"specialty": "dermatology", "shared_device": False, "extra_memory_mib": 2.0}
    return Answers(about | header, rows)


def good_adapter(system: str, pair: Record) -> str:
    return pair.answer if system == "adapter" else "I cannot say that 99 times, or I can."


def scored(data: DataSet, given: Answers, items: tuple[DiagnosticItem, ...] = ()) -> dict[str, Any]:
    return score(data, given, items, (), seed=0)


def test_an_adapter_that_knows_every_reference() -> None:
    data = dataset()
    result = scored(data, answers(data, good_adapter))
    metrics = result["metrics"]
    for name in ("bleu", "rouge_l", "terminology"):
        assert metrics[name]["systems"]["adapter"]["value"] == pytest.approx(100), name
        assert metrics[name]["difference"]["interval"][0] > 0, name
    assert metrics["terminology"]["systems"]["base"]["value"] == 0
    assert metrics["nll"]["systems"]["base"]["value"] == 2
    assert metrics["nll"]["difference"] == {"value": -1, "interval": [-1, -1]}
    assert result["answers_changed"] == 1


def test_equal_answers_make_no_difference() -> None:
    data = dataset()
    result = scored(data, answers(data, lambda _, pair: pair.answer))
    for name in ("bleu", "rouge_l", "terminology"):
        assert result["metrics"][name]["difference"] == {"value": 0, "interval": [0, 0]}, name
    assert result["answers_changed"] == 0


def test_dummies() -> None:
    """The echo repeats the question, whose words the terms leave out."""
    data = dataset()
    metrics = scored(data, answers(data, good_adapter))["metrics"]
    assert metrics["terminology"]["systems"]["echo"]["value"] == 0
    assert metrics["terminology"]["systems"]["random"]["value"] == 100  # one term, in all answers
    assert 0 < metrics["rouge_l"]["systems"]["echo"]["value"] < 50
    assert set(metrics["nll"]["not_available"]) == {"nearest_neighbour", "random", "echo"}


def test_the_values_of_each_question_add_up() -> None:
    data = dataset()
    result = scored(data, answers(data, good_adapter))
    types = Counter(row["question_type"] for row in result["per_question"])
    assert types == {"information": 6, "symptoms": 6}
    gains = [row["rouge_l"]["adapter"] - row["rouge_l"]["base"] for row in result["per_question"]]
    mean = result["metrics"]["rouge_l"]["difference"]["value"]
    assert sum(gains) / NUM == pytest.approx(mean, abs=1e-5)
    shown = [example["rouge_l_gain"] for example in result["examples"]]
    assert (shown[0], shown[-1]) == pytest.approx((min(gains), max(gains)), abs=0.01)


def test_overlap_with_training_answers_is_counted_by_question() -> None:
    """Eight words in a row of the first reference stand in a training answer."""
    data = dataset()
    planted = pair("train", 200, answer="Note: Disease 0 is a dermatitis that makes the. End.")
    data = DataSet((*data.train, planted), data.validation, data.files)
    rows = scored(data, answers(data, good_adapter))["per_question"]
    assert [row["reference_8grams_in_training"] for row in rows] == [1, *[0] * (NUM - 1)]


def test_honesty_counts() -> None:
    data = dataset()

    def said(system: str, pair: Record) -> str:
        if system == "base":
            return "" if pair.id == "validation0" else "It takes 77 days, or 78."
        return "and so it goes on " * 9

    given = answers(data, said)
    cut = given.rows["adapter"]["validation3"]
    given.rows["adapter"]["validation3"] = row(cut.id, "adapter", cut.answer, hit_limit=True)
    honesty = scored(data, given)["honesty"]
    assert honesty["base"]["empty"] == 1
    assert honesty["base"]["answers_with_unsupported_numbers"] == NUM - 1
    assert honesty["base"]["unsupported_numbers"] == 2 * (NUM - 1)
    assert honesty["base"]["goes_in_circles"] == 0
    assert honesty["adapter"]["goes_in_circles"] == NUM
    assert honesty["adapter"]["hit_token_limit"] == 1


def items(num: int) -> tuple[DiagnosticItem, ...]:
    names = ("Marble fever",), ("Tin knee",)
    return tuple(
        DiagnosticItem(f"diagnosis/{i}", "Which disease?", names[i % 2], "signs")
        for i in range(num)
    )


def test_diagnostic_accuracy() -> None:
    data, asked = dataset(), items(MIN_DIAGNOSTIC)
    given = answers(data, good_adapter, tuple(item.id for item in asked))
    result = scored(data, given, asked)
    found = result["metrics"]["diagnostic_accuracy"]
    assert (found["n"], found["systems"]["base"]["value"]) == (MIN_DIAGNOSTIC, 50)
    assert [item["adapter"] for item in result["diagnostic_items"][:2]] == [True, False]


def test_too_few_diagnostic_items_are_no_accuracy_of_zero() -> None:
    data, asked = dataset(), items(MIN_DIAGNOSTIC - 1)
    given = answers(data, good_adapter, tuple(item.id for item in asked))
    found = scored(data, given, asked)["metrics"]["diagnostic_accuracy"]
    assert found["systems"] == {}
    assert found["not_available"]["adapter"] == "fewer than 10 items"


def test_citations() -> None:
    """Half of the adapter's answers name the right publisher, a quarter a wrong one."""
    data = dataset(answer=f"It itches.\nSource: {PUBLISHER}", url="https://a.example/x")

    def said(system: str, pair: Record) -> str:
        if system == "base":
            return "It itches. See https://invented.example."
        number = int(pair.id.removeprefix("validation")) % 4
        named = {0: PUBLISHER, 1: PUBLISHER, 2: "Journal of Nothing"}.get(number)
        return f"It itches: https://a.example/x.\nSource: {named}" if named else "It itches."

    metrics = scored(data, answers(data, said))["metrics"]
    assert metrics["citation_recall"]["systems"]["base"]["value"] == 0
    assert metrics["citation_recall"]["systems"]["adapter"]["value"] == pytest.approx(50)
    precision = metrics["citation_precision"]
    assert precision["systems"]["adapter"]["value"] == pytest.approx(200 / 3)
    assert precision["not_available"] == {"base": "it names no source in any answer"}
    assert "base" not in precision["systems"]
    assert metrics["invented_urls"]["systems"]["base"]["value"] == 1
    assert metrics["invented_urls"]["systems"]["adapter"]["value"] == 0


def test_citations_of_an_adapter_that_was_not_taught_any() -> None:
    data = dataset()
    metrics = scored(data, answers(data, good_adapter))["metrics"]
    for name in ("citation_precision", "citation_recall"):
        assert metrics[name]["systems"] == {}
        assert "--with_sources" in metrics[name]["not_available"]["adapter"]


def test_terminology_without_terms() -> None:
    data = dataset(answer="It is red.")
    found = scored(data, answers(data, good_adapter))["metrics"]["terminology"]
    assert found["systems"] == {}
    assert found["not_available"]["adapter"] == "it applies to none of the questions"


@pytest.mark.parametrize(
    ("header", "device", "why"),
    [
        ({}, "cpu", None),
        ({"shared_device": True}, "cpu", "other work ran on the device"),
        ({"shared_device": None}, "cpu", "whether other work ran on the device is not recorded"),
        ({}, "gpu", "the answers of base and adapter were made on different devices"),
    ],
)
def test_time_for_each_answer(header: dict[str, Any], device: str, why: str | None) -> None:
    data = dataset()
    given = answers(data, good_adapter, **header)
    given.rows["adapter"] = {
        id_: row(id_, "adapter", r.answer, device=device)
        for id_, r in given.rows["adapter"].items()
    }
    found = scored(data, given)["metrics"]["time_per_answer_s"]
    if why is None:
        assert found["difference"]["value"] == pytest.approx(0.1)
    else:
        assert (found["systems"], found["not_available"]["adapter"]) == ({}, why)


@pytest.mark.parametrize("nll", [None, float("nan"), float("inf")])
def test_a_reference_without_likelihood_is_not_left_out_of_the_mean(nll: float | None) -> None:
    data = dataset()
    given = answers(data, good_adapter)
    given.rows["adapter"]["validation7"] = row("validation7", "adapter", "Red.", nll=nll)
    with pytest.raises(DataError, match=r"adapter's answer to validation7 has no finite"):
        scored(data, given)


def test_an_address_within_an_answer_of_the_data_is_not_invented() -> None:
    data = dataset(answer="See https://a.example/x.")

    def said(system: str, pair: Record) -> str:
        return "See https://a.example/x" + ("y." if system == "base" else ".")

    systems = scored(data, answers(data, said))["metrics"]["invented_urls"]["systems"]
    assert (systems["base"]["value"], systems["adapter"]["value"]) == (1, 0)


def test_a_question_without_answer() -> None:
    data = dataset()
    given = answers(data, good_adapter)
    del given.rows["base"]["validation7"]
    with pytest.raises(DataError, match=r"1 of 12 questions .* base \(the first: validation7\)"):
        scored(data, given)
