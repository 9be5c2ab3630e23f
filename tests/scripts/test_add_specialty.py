"""The command that adds a specialty on a clone without the data, and takes it back."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from adapters.client import ApiRefused
from router.artefact import WEIGHTS, load_artefact
from router.versions import CURRENT, VERSIONS, read_current, resolve
from scripts.add_specialty import main
from tests.router.added_questions import added_questions
from tests.router.small_questions import LABELS, OUT_OF_SCOPE, small_questions

TEETH = added_questions("dentistry")


class Clinic:
    """A clone: the artefact, a folder of questions, a folder of versions."""

    def __init__(self, folder: Path, artefact: Path) -> None:
        self.artefact = Path(shutil.copytree(artefact, folder / "artefact"))
        self.questions = folder / "questions"
        self.questions.mkdir()
        self.out = folder / "state"
        self.write("a.txt", TEETH[:40])
        rows = [json.dumps({"input": q}) for q in TEETH[40:]]
        self.write("b.jsonl", rows)

    def write(self, name: str, lines: list[str]) -> None:
        (self.questions / name).write_text("\n".join(lines) + "\n", encoding="utf-8")

    def add(self, *more: str, label: str = "dentistry") -> int:
        return main(
            [
                *("--label", label, "--questions", str(self.questions), "--out", str(self.out)),
                *("--artefact", str(self.artefact), "--date", "2026-01-03", *more),
                *(() if self.is_asked else ("--offline",)),
            ]
        )

    is_asked = False  # whether a running clinic is asked

    def roll_back(self) -> int:
        return main(["--out", str(self.out), "--roll_back", "--offline"])

    def contents(self) -> dict[str, bytes]:
        return {p.name: p.read_bytes() for p in sorted(resolve(self.out).iterdir())}


@pytest.fixture
def clinic(tiny_router_dir: Path, tmp_path: Path) -> Clinic:
    return Clinic(tmp_path, tiny_router_dir)


def last_line(capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    report: dict[str, Any] = json.loads(capsys.readouterr().out.splitlines()[-1])
    return report


@pytest.mark.slow
def test_one_command_adds_and_one_takes_back(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p.name: p.read_bytes() for p in sorted(clinic.artefact.iterdir())}
    assert clinic.add() == 0
    report = last_line(capsys)
    assert report["published"] is True
    assert report["num_questions"] == 60
    assert report["recall_of_label"] > 0.7
    assert report["num_more_questions_needed"] == 0
    wrong_before, wrong_after = report["others"]["wrong_specialist"]
    assert wrong_after <= wrong_before + 0.01 * report["others"]["num_questions"]
    assert report["label_thresholds"] == {"dentistry": report["threshold"]}
    assert report["largest_loss"] <= 0.02
    assert report["losses"] == {}
    artefact = load_artefact(resolve(clinic.out))
    assert artefact.version == report["version"] == read_current(clinic.out).version
    assert artefact.version.startswith("2026-01-03+")
    assert artefact.specialties == tuple(sorted((*LABELS, "dentistry")))
    assert {p.name: p.read_bytes() for p in sorted(clinic.artefact.iterdir())} == before
    assert clinic.roll_back() == 0
    assert last_line(capsys) == {"version": read_current(clinic.out).version}
    assert clinic.contents() == before
    assert clinic.roll_back() == 2
    assert "there is no version before" in capsys.readouterr().err


@pytest.mark.slow
def test_two_specialties_one_after_the_other(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clinic.add() == 0
    after_first = clinic.contents()
    shutil.rmtree(clinic.questions)
    clinic.questions.mkdir()
    clinic.write("ears.txt", added_questions("otology"))
    assert clinic.add(label="otology") == 0
    report = last_line(capsys)
    assert report["largest_loss"] <= 0.02
    assert {"dentistry", "otology"} < set(load_artefact(resolve(clinic.out)).specialties)
    assert clinic.roll_back() == 0
    assert clinic.contents() == after_first


@pytest.mark.slow
def test_a_single_file_will_do(clinic: Clinic) -> None:
    clinic.questions = clinic.questions / "a.txt"
    assert clinic.add() == 0


def stolen() -> list[str]:
    questions = [q for seed in range(4, 12) for q in small_questions(seed)]
    return [q.text for q in questions if q.specialty == "nephrology_urology"]


@pytest.mark.slow
def test_a_loss_is_not_published_unless_allowed(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    clinic.questions = clinic.questions / "stolen.txt"
    clinic.questions.write_text("\n".join(stolen()), encoding="utf-8")
    assert clinic.add(label="plumbing") == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert report["published"] is False
    assert "version" not in report
    assert report["losses"]["nephrology_urology"] > 0.02
    assert "not published: " in captured.err
    assert "recall lost by nephrology_urology" in captured.err
    assert not clinic.out.exists()
    assert clinic.add("--allow_loss", label="plumbing") == 0
    assert "plumbing" in load_artefact(resolve(clinic.out)).specialties


@pytest.mark.parametrize(
    "label", ["Dentistry", "dentistry!", "d", "1st", "../x", "é_x", "", "a" * 51]
)
def test_a_bad_label_is_refused(
    clinic: Clinic, capsys: pytest.CaptureFixture[str], label: str
) -> None:
    assert clinic.add(label=label) == 2
    assert "--label" in capsys.readouterr().err
    assert not clinic.out.exists()


@pytest.mark.parametrize(
    ("label", "message"),
    [("cardiology", "the router has it already"), ("out_of_scope", "label 'out_of_scope'")],
)
def test_a_known_label_is_refused(
    clinic: Clinic, capsys: pytest.CaptureFixture[str], label: str, message: str
) -> None:
    assert clinic.add(label=label) == 2
    assert message in capsys.readouterr().err
    assert not clinic.out.exists()


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("c.csv", ["x"], "c.csv: expected a .txt file"),
        ("b.jsonl", ['{"input": "x"}', "{"], "b.jsonl, line 2: no JSON object"),
        ("a.txt", TEETH[:5], "25 different questions; at least 30"),
    ],
)
def test_bad_questions_are_refused(
    clinic: Clinic,
    capsys: pytest.CaptureFixture[str],
    name: str,
    lines: list[str],
    message: str,
) -> None:
    clinic.write(name, lines)
    assert clinic.add() == 2
    assert message in capsys.readouterr().err
    assert not clinic.out.exists()


def test_nothing_to_read_is_refused(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(clinic.questions)
    assert clinic.add() == 2
    assert "no such file or folder" in capsys.readouterr().err
    clinic.questions.mkdir()
    assert clinic.add() == 2
    assert "nothing in it" in capsys.readouterr().err
    assert main(["--label", "dentistry", "--out", str(clinic.out)]) == 2
    assert "--label and --questions are needed" in capsys.readouterr().err


def test_a_damaged_artefact_is_refused(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    (clinic.artefact / WEIGHTS).write_bytes(b"damaged")
    assert clinic.add() == 2
    assert "weights.npz: its sha256" in capsys.readouterr().err
    assert not clinic.out.exists()


@pytest.mark.slow
def test_an_artefact_cannot_be_its_own_folder_of_versions(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    clinic.out = clinic.artefact
    assert clinic.add() == 2
    assert "an artefact itself" in capsys.readouterr().err
    assert not (clinic.artefact / CURRENT).exists()
    assert not (clinic.artefact / VERSIONS).exists()


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--help"])
    assert caught.value.code == 0
    assert "--roll_back" in capsys.readouterr().out


class Operator:
    """Stands for the running clinic's API."""

    refuses = False
    calls: list[tuple[str, ...]]

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url

    def add(self, name: str, source: str, version: str, **options: Any) -> dict[str, Any]:
        if self.refuses:
            raise ApiRefused(422, ["does not fit"])
        self.calls.append(("add", name, source, version, options["specialty"]))
        return {"revision": 1, "unconfirmed": {}}

    def remove(self, name: str) -> dict[str, Any]:
        self.calls.append(("remove", name))
        return {"revision": 2, "unconfirmed": {}}

    def add_passages(self, passages: list[dict[str, Any]]) -> dict[str, Any]:
        self.calls += [("shelve", p["id"], p["specialty"], p["source"]) for p in passages]
        return {"version": "2-abc"}

    def remove_passages(self, ids: list[str]) -> dict[str, Any]:
        self.calls += [("take off", id_) for id_ in ids]
        return {"version": "3-abc"}

    def ready(self) -> dict[str, Any]:
        return {"router": {"version": self.served()[0], "reload_problem": None}}

    def routers(self) -> list[dict[str, Any]]:
        return [{"router_version": version} for version in self.served()]

    follows: Path | None = None

    def served(self) -> list[str]:
        """The version of each of two router replicas."""
        version = read_current(self.follows).version if self.follows else "2026-01-02+other"
        return [version, version]


@pytest.fixture
def operator(monkeypatch: pytest.MonkeyPatch) -> type[Operator]:
    monkeypatch.setattr("scripts.add_specialty.AdminClient", Operator)
    monkeypatch.setattr(Operator, "calls", [], raising=False)
    monkeypatch.setattr(Operator, "follows", None)
    return Operator


def test_label_and_adapter_come_and_go_with_one_command(
    clinic: Clinic, operator: type[Operator], capsys: pytest.CaptureFixture[str]
) -> None:
    clinic.is_asked, operator.follows = True, clinic.out
    assert clinic.add("--adapter", "/srv/teeth", "--adapter_version", "7") == 0
    report = last_line(capsys)
    assert (report["live"], report["routers"]) == (True, 2)
    assert (report["published"], report["adapter"], report["unconfirmed"]) == (
        True,
        "dentistry",
        {},
    )
    assert main(["--out", str(clinic.out), "--roll_back", "--name", "dentistry"]) == 0
    assert operator.calls == [
        ("add", "dentistry", "/srv/teeth", "7", "dentistry"),
        ("remove", "dentistry"),
    ]
    assert "dentistry" not in load_artefact(resolve(clinic.out)).specialties


@pytest.mark.slow
def test_the_label_goes_back_when_the_adapter_is_refused(
    clinic: Clinic,
    operator: type[Operator],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(operator, "refuses", True)
    assert clinic.add("--adapter", "/srv/teeth") == 2
    assert "does not fit" in capsys.readouterr().err
    assert "dentistry" not in load_artefact(resolve(clinic.out)).specialties


@pytest.mark.slow
def test_a_clinic_that_follows_another_folder_is_no_success(
    clinic: Clinic, operator: type[Operator], capsys: pytest.CaptureFixture[str]
) -> None:
    clinic.is_asked = True
    assert clinic.add("--wait", "0", "--adapter", "/srv/teeth") == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert (report["published"], report["live"]) == (True, False)
    assert "serves 2026-01-02+other" in report["why_not_live"]
    assert f"router: {{artefact: {clinic.out}}}" in captured.err, "the setting to change"
    assert operator.calls == [], "no adapter for a label that nobody routes to"


@pytest.mark.slow
def test_nobody_there_is_no_success(clinic: Clinic, capsys: pytest.CaptureFixture[str]) -> None:
    clinic.is_asked = True
    assert clinic.add("--url", "http://127.0.0.1:9") == 1
    captured = capsys.readouterr()
    assert json.loads(captured.out.splitlines()[-1])["live"] is False
    assert "no clinic confirms it" in captured.err
    assert "artefact:" in captured.err


@pytest.mark.slow
def test_too_little_recall_is_not_published_and_says_how_many_more(
    clinic: Clinic, capsys: pytest.CaptureFixture[str]
) -> None:
    mixed = [q.text for q in small_questions(7) if q.specialty != OUT_OF_SCOPE][::6]
    clinic.questions = clinic.questions / "mixed.txt"
    clinic.questions.write_text("\n".join(mixed), encoding="utf-8")
    assert clinic.add("--allow_loss", label="anything") == 1
    captured = capsys.readouterr()
    report = json.loads(captured.out.splitlines()[-1])
    assert report["published"] is False
    assert f"give about {report['num_more_questions_needed']} more questions" in captured.err
    assert not clinic.out.exists()


def test_the_folder_is_the_one_that_the_configuration_follows(
    clinic: Clinic, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tmp_path / "serve.yaml"
    config.write_text(f"applications: [{{args: {{state_dir: {tmp_path / 'live'}}}}}]")
    asked = ["--label", "dentistry", "--questions", str(clinic.questions), "--offline"]
    assert main([*asked, "--config", str(config), "--artefact", str(clinic.artefact)]) == 0
    version = last_line(capsys)["version"]
    assert read_current(tmp_path / "live" / "router").version == version


GUIDE = ("--source", "Our guide", "--licence", "own")


@pytest.mark.slow
def test_passages_come_with_the_specialty_and_go_with_it(
    clinic: Clinic, operator: type[Operator], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    guides = tmp_path / "guides"
    guides.mkdir()
    (guides / "caries.md").write_text("# Caries\n\nA hole in a tooth.\n")
    given = ("--references", str(guides), *GUIDE)
    clinic.is_asked, operator.follows = True, clinic.out
    assert clinic.add("--adapter", "/srv/teeth", *given) == 0
    (shelved, added) = operator.calls
    assert (shelved[0], shelved[2:]) == ("shelve", ("dentistry", "Our guide"))
    assert added[0] == "add"
    assert main(["--out", str(clinic.out), "--roll_back", *given]) == 0
    assert operator.calls[2:] == [("take off", shelved[1])]
    monkeypatch.setattr(operator, "refuses", True)
    operator.calls.clear()
    assert clinic.add("--adapter", "/srv/teeth", *given) == 2
    assert [call[0] for call in operator.calls] == ["shelve", "take off"]
    assert "dentistry" not in load_artefact(resolve(clinic.out)).specialties


def test_a_folder_that_is_refused_publishes_nothing(
    clinic: Clinic, operator: type[Operator], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guides = tmp_path / "guides"
    guides.mkdir()
    (guides / "caries.md").write_bytes(b"# Caries\n\nA hole\xff.\n")
    clinic.is_asked = True
    assert clinic.add("--references", str(guides), *GUIDE) == 2
    assert "not UTF-8" in capsys.readouterr().err
    (guides / "caries.md").write_text("# Caries\n\nA hole in a tooth.\n")
    assert clinic.add("--references", str(guides)) == 2
    assert "it has no source" in capsys.readouterr().err
    assert clinic.add("--references", str(guides), "--offline", *GUIDE) == 2
    assert "without --offline" in capsys.readouterr().err
    assert operator.calls == []
    assert not clinic.out.exists()
