"""What is served, and which version of it answers a session."""

from collections import Counter

from deployments.messages import AdapterCard, ServedModels


def test_sessions_share_out_by_the_weight_and_stay() -> None:
    card = AdapterCard("derm", "dermatology", "1", "2", 0.3)
    chosen = {f"s{i}": card.for_session(f"s{i}").version for i in range(4000)}
    share = Counter(chosen.values())["2"] / len(chosen)
    assert 0.27 < share < 0.33
    assert all(card.for_session(s).version == version for s, version in chosen.items())
    # more weight only adds sessions: none that had the new version goes back
    more = AdapterCard("derm", "dermatology", "1", "2", 0.6)
    assert all(more.for_session(s).version == "2" for s, v in chosen.items() if v == "2")
    # another trial draws other sessions
    other = AdapterCard("derm", "dermatology", "1", "3", 0.3)
    again = {s for s in chosen if other.for_session(s).version == "3"}
    assert len(again & {s for s, v in chosen.items() if v == "2"}) < 0.6 * len(again)
    drawn = Counter(card.for_session(None).version for _ in range(2000))
    assert 0.24 < drawn["2"] / 2000 < 0.36


def test_a_clinic_for_a_session_names_the_version_that_answers() -> None:
    cards = (AdapterCard("derm", "dermatology", "1", "2", 1.0), AdapterCard("c", "cardiology", "4"))
    clinic = ServedModels("tiny", cards, ("cardiology", "dermatology"), 16, 64, 1)
    shown = clinic.for_session("s")
    assert [(c.name, c.version) for c in shown.adapters] == [("derm", "2"), ("c", "4")]
    assert [c.version for c in clinic.adapters] == ["1", "4"]


def test_a_session_looks_only_at_the_adapters_that_have_a_canary() -> None:
    drawn: list[str] = []

    class Watched(AdapterCard):
        def for_session(self, session_id: str | None) -> AdapterCard:
            drawn.append(self.name)
            return super().for_session(session_id)

    quiet = tuple(Watched(f"a{n}", f"s{n}", "1") for n in range(50))
    served = ServedModels("tiny", quiet, (), 16, 64, 1)
    assert served.for_session("s") is served
    trial = ServedModels("tiny", (*quiet, Watched("t", "t", "1", "2", 1.0)), (), 16, 64, 1)
    chosen = trial.for_session("s")
    assert drawn == ["t"]
    assert [chosen.adapter(name) for name in ("t", "a3", "x")] == [
        AdapterCard("t", "t", "2"),
        quiet[3],
        None,
    ]
    assert chosen.model_names == trial.model_names
    again = trial.adapter("t")
    assert again is not None
    assert again.version == "1", "the other sessions' versions are as they were"
