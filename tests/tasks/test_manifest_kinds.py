"""The pre-training task on a manifest that names plain files, members of a zip and segments of a long recording."""

import zipfile

import torch
from fairseq import tasks
from omegaconf import OmegaConf

import d2v_plugin.tasks.audio_pretraining  # noqa: F401


def test_one_manifest_may_name_all_three(corpus):
    plain = corpus.add("plain.wav", 4000)
    corpus.add("long.flac", 20000)
    corpus.lines.pop()
    with zipfile.ZipFile(corpus.folder / "clips.zip", "w", zipfile.ZIP_STORED) as archive:
        archive.write(plain, "plain.wav")
    offset = (corpus.folder / "clips.zip").read_bytes().index(b"RIFF")
    corpus.list(f"clips.zip:{offset}:{plain.stat().st_size}", 4000)
    corpus.list("long.flac:0:4000", 4000)
    corpus.list("long.flac:7000:5000", 5000)
    corpus.manifest()

    cfg = {"common": {"seed": 1, "tpu": False}, "task": {"_name": "d2v_audio_pretraining", "data": str(corpus.folder)}}
    task = tasks.setup_task(OmegaConf.create(cfg).task)
    task.load_dataset("train")
    dataset = task.dataset("train")
    batches = list(task.get_batch_iterator(dataset, max_sentences=4, required_batch_size_multiple=1).next_epoch_itr())
    assert sorted(sum((batch["id"].tolist() for batch in batches), [])) == [0, 1, 2, 3]
    assert dataset.bad_files.count() == 0
    plain_wave, member, first, second = (dataset[n]["source"] for n in range(4))
    assert torch.equal(plain_wave, member)
    assert [len(plain_wave), len(first), len(second)] == [4000, 4000, 5000]
    assert not torch.equal(first, second[:4000])
