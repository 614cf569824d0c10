"""What `kamim runs` tells of the pretrainings below a folder."""

import shlex
import subprocess
import sys

import pytest
from background import QUIET, SMALL, VIT

from modeling_kamim.api import pretraining
from modeling_kamim.commands import pretrain as run_mim
from modeling_kamim.commands import runs
from modeling_kamim.errors import InputError
from modeling_kamim.training.overview import pretrainings
from modeling_kamim.training.run_directory import LOCK_FILE

HOLD = "import fcntl, sys; f = open(sys.argv[1], 'a+'); fcntl.lockf(f, fcntl.LOCK_EX); print(flush=True); input()"


@pytest.fixture
def pretrain(monkeypatch):
    monkeypatch.setattr(pretraining, "draw_pictures", lambda *args: None)  # takes as long as all else
    batch = ["--per_device_train_batch_size", "4", "--precision", "fp32", "--save_steps", "2", "--max_steps", "4"]

    def pretrain(output_dir, *argv):
        words = [*VIT, *SMALL, *QUIET, *batch, *argv, "--output_dir", str(output_dir)]
        monkeypatch.setattr(sys, "argv", ["kamim pretrain", *words])
        run_mim.main()

    return pretrain


def overview(capsys, monkeypatch, *folders):
    monkeypatch.setattr(sys, "argv", ["kamim runs", *map(str, folders)])
    runs.main()
    return capsys.readouterr().out


def test_a_run_is_finished_stopped_or_running(pretrain, tmp_path, capsys, monkeypatch):
    pretrain(tmp_path / "a", "--weighting", "none")
    (found,) = pretrainings(tmp_path)
    assert (found.state, found.step, found.num_steps, found.images_seen) == ("finished", 4, 4, 16)
    assert found.method == "SimMIM, vit tiny" and found.command is None and found.images_per_second > 0
    assert "To go on" not in overview(capsys, monkeypatch, tmp_path)

    # as a run that was killed between its second and its fourth step leaves it
    for name in ("trainer_state.json", "run_settings.json", "model.safetensors"):
        (tmp_path / "a" / name).unlink()
    for file in (tmp_path / "a" / "checkpoint-4").iterdir():
        file.unlink()
    (tmp_path / "a" / "checkpoint-4").rmdir()
    (found,) = pretrainings(tmp_path)
    assert (found.state, found.step, found.images_seen) == ("stopped", 2, 8)
    text = overview(capsys, monkeypatch, tmp_path)
    assert "2/4" in text and found.command in text

    lock = tmp_path / "a" / LOCK_FILE
    with subprocess.Popen([sys.executable, "-c", HOLD, lock], stdin=-1, stdout=-1, text=True) as process:
        process.stdout.readline()
        assert [found.state for found in pretrainings(tmp_path)] == ["running"]
        process.communicate("\n")
    assert [found.state for found in pretrainings(tmp_path)] == ["stopped"]

    monkeypatch.setattr(sys, "argv", ["kamim pretrain", *shlex.split(found.command)[2:]])
    run_mim.main()
    (found,) = pretrainings(tmp_path)
    assert (found.state, found.step) == ("finished", 4)


def test_a_control_on_another_family_and_a_run_without_a_checkpoint(pretrain, tmp_path, capsys, monkeypatch):
    pretrain(tmp_path / "deep" / "b", "--weighting", "shuffled", "--max_steps", "2")
    (tmp_path / "c").mkdir()
    for name in ("settings.yaml", "kamim_run.json"):
        (tmp_path / "c" / name).write_bytes((tmp_path / "deep" / "b" / name).read_bytes())
    text = overview(capsys, monkeypatch, tmp_path)
    assert "KAMIM-shuffled, vit tiny" in text and "nothing saved" in text
    assert "--resume_from_checkpoint" not in text.split("To go on:")[1]


def test_folders_without_runs_are_told(tmp_path, capsys, monkeypatch):
    with pytest.raises(InputError, match="no pretraining of this package in"):
        overview(capsys, monkeypatch, tmp_path)
    with pytest.raises(InputError, match="there is no folder .*nowhere"):
        overview(capsys, monkeypatch, tmp_path / "nowhere")
