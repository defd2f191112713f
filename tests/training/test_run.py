"""The run folder: made whole or not at all, and readable or said to be damaged."""

from __future__ import annotations

import json
import shutil
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml

import tiny
from ssole import api
from ssole.config import ConfigError
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.run import Run, create_run, new_run
from tiny import Crash, crash


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a run that ended after step 7, with a checkpoint of step 5."""
    folder = tmp_path_factory.mktemp("crashed") / "run"
    with pytest.raises(Crash):
        tiny.start(folder, evaluators={7: crash})
    return folder


@pytest.fixture
def crashed(template: Path, tmp_path: Path) -> Run:
    """Copy of that run."""
    return Run(shutil.copytree(template, tmp_path / "run"))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("exists", [False, True])
def test_a_start_that_fails_leaves_nothing(tmp_path: Path, exists: bool) -> None:
    out = tmp_path / "runs" / "mine"
    if exists:
        out.mkdir(parents=True)
    for _ in range(2):  # the second start is not refused either
        with pytest.raises(Crash), new_run(out, tiny.config()):
            raise Crash
        assert list(tmp_path.rglob("*")) == ([out.parent, out] if exists else [])
    assert tiny.start(out).finished


def test_a_start_that_fails_leaves_what_was_there(tmp_path: Path) -> None:
    run = create_run(tmp_path / "first", tiny.config())
    (run.path / "metrics.jsonl").touch()  # its first step was taken
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="already holds a run"), new_run(tmp_path / "first", tiny.config()):
        pass
    assert contents(tmp_path) == before


@pytest.mark.parametrize("files", [[], ["environment.json"], ["environment.json", "config.yaml", "images.json"]])
def test_a_start_that_was_killed_before_its_first_step_is_not_in_the_way(tmp_path: Path, files: list[str]) -> None:
    killed = create_run(tmp_path / "run", tiny.config()).path
    (killed / "images.json").write_text("{}")
    for name in {"environment.json", "config.yaml", "images.json"} - set(files):
        (killed / name).unlink()
    (killed / ".images.json.0123abcd.ssole-tmp").touch()
    (killed / ".lock").touch()
    assert tiny.start(killed, steps=2).config.steps == 2
    assert not list(killed.glob(".images*"))


def test_nor_is_one_that_was_killed_after_its_checkpoint_of_step_0(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        tiny.start(tmp_path / "run", evaluators={1: crash})
    killed = Run(tmp_path / "run")
    assert checkpoint_steps(killed) == [0]
    with pytest.raises(ConfigError, match="already holds a run"):
        tiny.start(killed.path)
    (killed.path / "metrics.jsonl").unlink()  # as before the first step
    (killed.checkpoints / ".step-00000000.json.0123abcd.ssole-tmp").touch()
    (killed.path / "init.json").write_text("{}")
    assert tiny.start(killed.path, steps=2).config.steps == 2


@pytest.mark.parametrize("stray", ["notes.txt", "metrics.jsonl", "checkpoints/step-5.json", "failures/step-3/x"])
def test_a_start_keeps_its_hands_off_anything_else(tmp_path: Path, stray: str) -> None:
    run = create_run(tmp_path / "run", tiny.config())
    (run.path / stray).parent.mkdir(parents=True, exist_ok=True)
    (run.path / stray).touch()
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match="already holds a run"):
        tiny.start(run.path)
    assert contents(tmp_path) == before


def test_a_start_is_refused_where_another_process_is_about_to_take_its_first_step(tmp_path: Path) -> None:
    with new_run(tmp_path / "run", tiny.config()) as run:
        before = contents(tmp_path)
        with pytest.raises(ConfigError, match="another process is training"):
            tiny.start(run.path)
        assert contents(tmp_path) == before


def test_a_loss_that_cannot_be_made_leaves_no_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="needs labels"):
        tiny.start(tmp_path / "run", loss={"name": "supervised"})
    assert not (tmp_path / "run").exists()


def test_a_run_that_fails_after_its_first_step_stays(tmp_path: Path) -> None:
    with pytest.raises(Crash):
        tiny.start(tmp_path / "run", evaluators={1: crash}, log_every=100)
    assert tiny.resume(tmp_path / "run").finished


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_permissions_follow_the_umask(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, umask: int) -> None:
    import os

    before = os.umask(umask)
    try:
        run = tiny.start(tmp_path / "run", steps=5)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in run.path.rglob("*") if path.name != ".lock"}
    folders = {"checkpoints", "tensorboard"}
    assert {mode for name, mode in modes.items() if name not in folders} == {0o666 & ~umask}
    assert modes["checkpoints"] == 0o777 & ~umask


@pytest.mark.parametrize("how", ["folder", "contents"])
def test_without_its_checkpoints_a_run_is_refused_and_keeps_its_metrics(crashed: Run, how: str) -> None:
    shutil.rmtree(crashed.checkpoints)
    if how == "contents":
        crashed.checkpoints.mkdir()
    before = contents(crashed.path)
    with pytest.raises(ConfigError, match=r"reach step 7, and .*checkpoints holds no checkpoint"):
        tiny.resume(crashed)
    assert contents(crashed.path) == before


DAMAGED: dict[str, list[str]] = {
    "environment.json": ["", "null", "[1]", "{", "[" * 10**5, '{"a": 1'],
    "images.json": ["", "null", "{}", "[" * 10**5],
    "metrics.jsonl": ["\n", "null\n", "{}\n", '{"step": "1"}\n', '{"step": true}\n', "[" * 10**5 + "\n", "\x00\n"],
    "config.yaml": ["", "null", "- 1", "a: b: c", "data: 5", "[" * 10**4, "epochs: " + "9" * 5000, "\x00"],
    "unreadable.jsonl": ["[]\n", '{"index": null, "id": "a", "reason": "b"}\n', '{"index": 1, "reason": "b"}\n'],
}


@pytest.mark.parametrize(("name", "text"), [(name, text) for name, texts in DAMAGED.items() for text in texts])
def test_a_damaged_file_is_named_and_nothing_is_changed(crashed: Run, name: str, text: str) -> None:
    (crashed.path / name).write_text(text)
    before = contents(crashed.path)
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")):
        tiny.resume(crashed)
    assert contents(crashed.path) == before


def test_settings_that_were_cut_short_are_not_filled_with_defaults(crashed: Run) -> None:
    file, record = crashed.path / "config.yaml", crashed.path / "environment.json"
    whole, facts = file.read_text(), json.loads(record.read_text())
    file.write_text(whole[: whole.index("augment:")])
    with pytest.raises(ConfigError, match=r"config\.yaml was cut short, optim\.layer_decay is missing: environment"):
        _ = crashed.config
    del facts["settings"]["optim"]["layer_decay"]  # as of a version without it
    record.write_text(json.dumps(facts))
    file.write_text(whole[: whole.index("  layer_decay:")])
    assert crashed.config.optim.layer_decay is None
    record.write_text("{")
    assert crashed.config.seed == 0


def test_a_damaged_line_of_unreadable_images_is_named(crashed: Run) -> None:
    (crashed.path / "unreadable.jsonl").write_text('{"index": 1, "id": "a", "reason": "b"}\n{"index": null}\n')
    with pytest.raises(ConfigError, match=r"line 2 of .*unreadable\.jsonl"):
        _ = crashed.unreadable


def change_settings(run: Run, **changes: Any) -> None:
    settings = yaml.safe_load((run.path / "config.yaml").read_text())
    (run.path / "config.yaml").write_text(yaml.safe_dump(settings | changes))


def test_changed_settings_are_shown_and_refused_until_allowed(crashed: Run) -> None:
    change_settings(crashed, seed=3, log_every=2)
    with pytest.raises(ConfigError, match=r"log_every was 1 and is 2; seed was 0 and is 3. .*--allow-changes settings"):
        tiny.resume(crashed)
    with pytest.warns(UserWarning, match="seed was 0 and is 3; the run goes on with that"):
        run = api.resume(crashed, data=tiny.images(), progress=False, allow_changes=["settings"])
    assert run.finished


def test_a_run_that_is_to_end_before_its_checkpoint_keeps_it(crashed: Run) -> None:
    change_settings(crashed, steps=4)
    before = contents(crashed.path)
    with (
        pytest.warns(UserWarning, match="steps was 12 and is 4"),
        pytest.raises(ConfigError, match=r"the run has done 5 steps, and config\.yaml now ends it after 4"),
    ):
        tiny.resume(crashed, allow_changes=["settings"])
    assert contents(crashed.path) == before
    change_settings(crashed, steps=5)
    with pytest.warns(UserWarning, match="steps was 12 and is 5"):
        assert tiny.resume(crashed, allow_changes=["settings"]).finished


def test_another_version_is_refused_until_allowed(crashed: Run) -> None:
    path = crashed.path / "environment.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"ssole": "0.0.1"}))
    with pytest.raises(ConfigError, match=r"was started with ssole 0\.0\.1, and this is .*--allow-changes version"):
        tiny.resume(crashed)
    with pytest.warns(UserWarning, match="the run goes on with that"):
        api.resume(crashed, data=tiny.images(), progress=False, allow_changes=["version"])


def test_a_run_of_the_first_version_has_no_settings_to_compare(crashed: Run) -> None:
    path = crashed.path / "environment.json"
    facts = json.loads(path.read_text())
    del facts["settings"]
    path.write_text(json.dumps(facts))
    assert tiny.resume(crashed).finished


@pytest.mark.parametrize(
    "name", ["checkpoints", "metrics.jsonl", ".lock", "tensorboard", "images.json", "failures/step-00000012"]
)
def test_links_that_lead_out_of_a_run_are_refused(crashed: Run, tmp_path: Path, name: str) -> None:
    outside, link = tmp_path / "outside", crashed.path / name
    if link.is_dir():
        shutil.move(link, outside)
    else:
        link.parent.mkdir(exist_ok=True)
        link.unlink(missing_ok=True)  # and nothing is there: a link to a file that writing would make
    link.symlink_to(outside)
    before = contents(tmp_path)
    with pytest.raises(ConfigError, match=f"{name} is a link to .*outside, and a run only writes to its own folder"):
        tiny.resume(crashed)
    assert contents(tmp_path) == before


def test_a_folder_in_which_an_index_is_being_made_is_not_taken(tmp_path: Path) -> None:
    features = tmp_path / ".parts.ssole-tmp" / "0.parquet"
    features.parent.mkdir()
    features.write_bytes(b"hours of work")
    with pytest.raises(ConfigError, match="is not empty, and nothing is overwritten"):
        tiny.start(tmp_path)
    assert features.read_bytes() == b"hours of work"


def test_a_link_to_itself_is_named(crashed: Run) -> None:
    (crashed.path / "loop").symlink_to("loop")
    with pytest.raises(ConfigError, match=r"loop is a link that leads nowhere .*: remove it"):
        tiny.resume(crashed)


@pytest.mark.parametrize("name", ["config", "environment", "finished", "metrics", "unreadable"])
def test_a_mistyped_folder_is_no_run_that_has_not_begun(name: str) -> None:
    with pytest.raises(ConfigError, match="there is no typo: give a run folder"):
        getattr(Run("typo"), name)  # type: ignore[arg-type]
