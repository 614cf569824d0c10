"""What a run saves is on the disk before it gets its name, and its name is before anything else happens."""

import errno
import os
from pathlib import Path

import pytest
from tiny_models import tiny_vit
from trainers import build_trainer

from modeling_kamim import files as durability
from modeling_kamim.evaluation.results import write_results


@pytest.fixture
def calls(monkeypatch):
    """The calls of `os.fsync` and `os.replace` in their order, with their paths."""
    calls = []
    fsync, replace, opened = os.fsync, os.replace, os.open
    paths = {}

    def record_open(path, *args, **kwargs):
        descriptor = opened(path, *args, **kwargs)
        paths[descriptor] = Path(path)
        return descriptor

    def record_fsync(descriptor):
        calls.append(("fsync", paths[descriptor]))
        fsync(descriptor)

    def record_replace(source, target):
        calls.append(("replace", Path(source), Path(target)))
        replace(source, target)

    monkeypatch.setattr(durability.os, "open", record_open)
    monkeypatch.setattr(durability.os, "fsync", record_fsync)
    monkeypatch.setattr(durability.os, "replace", record_replace)
    return calls


def assert_durable(calls, target, files):
    """All files, and their folder, are synced before they are moved to `target`, and the folder of that after."""
    (moved,) = [place for place, call in enumerate(calls) if call[0] == "replace" and call[2] == target]
    source = calls[moved][1]
    synced = [call[1] for call in calls[:moved] if call[0] == "fsync"]
    assert {source, *(source / name for name in files)} <= set(synced)
    assert ("fsync", target.parent) in calls[moved + 1 :]


def vit_trainer(output_dir, **settings):
    return build_trainer(tiny_vit(patch_size=16, encoder_stride=16), output_dir, **settings)


def test_checkpoints_are_on_the_disk_before_they_are_moved(calls, tmp_path):
    vit_trainer(tmp_path, max_steps=2, save_steps=1).train()
    for checkpoint in (tmp_path / "checkpoint-1", tmp_path / "checkpoint-2"):
        assert_durable(calls, checkpoint, [file.name for file in checkpoint.iterdir()])


def test_a_checkpoint_that_is_saved_again_is_removed_after_the_new_one_is_on_the_disk(calls, tmp_path, monkeypatch):
    vit_trainer(tmp_path, max_steps=1, save_steps=1).train()
    before = (tmp_path / "checkpoint-1" / "model.safetensors").read_bytes()

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(durability, "_sync", lambda path, flags: full(0) if path.suffix == ".pt" else None)
        vit_trainer(tmp_path, max_steps=1, save_steps=1, learning_rate=0.1).train()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_bytes() == before
    vit_trainer(tmp_path, max_steps=1, save_steps=1, learning_rate=0.1).train()
    assert (tmp_path / "checkpoint-1" / "model.safetensors").read_bytes() != before
    assert not (tmp_path / ".unfinished").exists()


def test_final_models_and_results_are_on_the_disk(calls, tmp_path):
    vit_trainer(tmp_path).save_model()
    write_results(tmp_path / "results.json", {"top1": 0.5})
    for name in ("model.safetensors", "config.json", "preprocessor_config.json", "results.json"):
        assert_durable(calls, tmp_path / name, [])


def test_folders_of_file_systems_that_sync_none(monkeypatch, tmp_path):
    def refuse(number):
        def fsync(descriptor):
            raise OSError(number, os.strerror(number))

        monkeypatch.setattr(durability.os, "fsync", fsync)

    refuse(errno.EINVAL)
    durability.sync(tmp_path)
    refuse(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"):
        durability.sync(tmp_path)
    with pytest.raises(OSError, match="Input/output error"):
        durability.write_text(tmp_path / "file", "text")
    assert list(tmp_path.iterdir()) == []
