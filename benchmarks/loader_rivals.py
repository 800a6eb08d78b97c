"""What the loader is measured against, each in the fastest way that its documentation shows.

All of them store the same JPEGs and poses, decode with simplejpeg, shuffle, and hand out the tensors of a batch: three
of images (B, H, W, 3) uint8 and two of poses (B, K, 3) float32, without end.
"""

import csv
import json
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
from streaming import MDSWriter, StreamingDataLoader, StreamingDataset
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from data.schema import IMAGES, JOINTS, POSES

MEMBERS = [*(f"{field}.jpg" for field in IMAGES), *(f"{field}.npy" for field in POSES)]
POSE_BYTES = 4 * 3 * len(JOINTS)  # what follows an .npy file's header
PREFETCH = 4  # batches a worker
SAMPLES_PER_SHARD = 200
Encoded = dict[str, str | bytes]  # as data.shards.encode_sample returns it
Arrays = tuple[np.ndarray, ...]


def decoded(members: dict[str, bytes]) -> Arrays:
    """Three images (H, W, 3) uint8 and two poses (K, 3) float32."""
    images = [simplejpeg.decode_jpeg(members[name]) for name in MEMBERS[: len(IMAGES)]]
    poses = [np.frombuffer(bytearray(members[name][-POSE_BYTES:]), "<f4") for name in MEMBERS[len(IMAGES) :]]
    return *images, *(pose.reshape(len(JOINTS), 3) for pose in poses)


def patience(workers: int) -> dict:
    """DataLoader's settings for workers."""
    return {"num_workers": workers, **({"prefetch_factor": PREFETCH, "persistent_workers": True} if workers else {})}


class FolderCSV:
    """Files in folders, a CSV that lists them, a map-style Dataset."""

    name, resumes = "folder_csv", False

    def make(self, samples: Iterable[Encoded], folder: Path) -> None:
        for member in MEMBERS:
            (folder / member).mkdir()
        with (folder / "samples.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(MEMBERS)
            for sample in samples:
                paths = [f"{member}/{sample['__key__']}{Path(member).suffix}" for member in MEMBERS]
                for member, path in zip(MEMBERS, paths, strict=True):
                    (folder / path).write_bytes(sample[member])
                rows.writerow(paths)

    def batches(self, folder: Path, workers: int, batch_size: int, start: int = 0) -> Iterator[list[Tensor]]:
        loader = DataLoader(Files(folder), batch_size, shuffle=True, drop_last=True, **patience(workers))
        while True:
            yield from loader


class Files(Dataset):
    def __init__(self, folder: Path):
        with (folder / "samples.csv").open(newline="") as file:
            self.rows = [[f"{folder}/{path}" for path in row] for row in list(csv.reader(file))[1:]]

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: int) -> Arrays:
        members = {}
        for member, path in zip(MEMBERS, self.rows[i], strict=True):
            with open(path, "rb", buffering=0) as file:  # noqa: PTH123, a Path costs more than the read
                members[member] = file.readall()
        return decoded(members)


class PlainWebDataset:
    """Tars read from front to back, shuffled by shard and in a buffer of samples."""

    name, resumes = "webdataset", False

    def make(self, samples: Iterable[Encoded], folder: Path) -> None:
        with webdataset.ShardWriter(f"{folder}/%06d.tar", maxcount=SAMPLES_PER_SHARD, encoder=False, verbose=0) as tars:
            for sample in samples:
                tars.write(sample)

    def batches(self, folder: Path, workers: int, batch_size: int, start: int = 0) -> Iterator[list[Tensor]]:
        tars = sorted(map(str, folder.glob("*.tar")))
        samples = webdataset.WebDataset(tars, shardshuffle=len(tars), seed=0).shuffle(1000).map(decoded)
        whole = samples.batched(batch_size, collation_fn=default_collate, partial=False)
        yield from webdataset.WebLoader(whole.repeat(), batch_size=None, **patience(workers))


class MosaicStreaming:
    """mosaicml-streaming's MDS shards on the local disk, its own order and resume."""

    name, resumes = "mosaicml_streaming", True

    def make(self, samples: Iterable[Encoded], folder: Path) -> None:
        pose = f"ndarray:float32:{len(JOINTS)},3"
        columns = {member: "bytes" if member.endswith(".jpg") else pose for member in MEMBERS}
        with MDSWriter(out=str(folder), columns=columns) as writer:
            for sample in samples:
                *images, person_pose, garment_pose = (sample[member] for member in MEMBERS)
                poses = (
                    np.frombuffer(data[-POSE_BYTES:], "<f4").reshape(-1, 3) for data in (person_pose, garment_pose)
                )
                writer.write(dict(zip(MEMBERS, (*images, *poses), strict=True)))

    def batches(self, folder: Path, workers: int, batch_size: int, start: int = 0) -> Iterator[list[Tensor]]:
        dataset = MDSImages(local=str(folder), shuffle=True, batch_size=batch_size)
        loader = StreamingDataLoader(dataset, batch_size=batch_size, drop_last=True, **patience(workers))
        if start:
            loader.load_state_dict(dataset.state_dict(start, from_beginning=True))
        while True:
            yield from loader


class MDSImages(StreamingDataset):
    def __getitem__(self, i: int) -> Arrays:
        sample = super().__getitem__(i)
        images = (simplejpeg.decode_jpeg(sample[name]) for name in MEMBERS[: len(IMAGES)])
        return *images, *(sample[name].copy() for name in MEMBERS[len(IMAGES) :])


class DecodeOnly:
    """Nothing but decoding from memory into one array: what all the others have to do at least."""

    name, resumes = "decode_only", False

    def make(self, samples: Iterable[Encoded], folder: Path) -> None:
        """A few hundred samples: more than the processor's caches hold."""
        sizes = []
        with (folder / "images").open("wb") as file:
            for sample, _ in zip(samples, range(256), strict=False):
                sizes += [file.write(sample[member]) for member in MEMBERS[: len(IMAGES)]]
        (folder / "sizes.json").write_text(json.dumps(sizes))

    def batches(self, folder: Path, workers: int, batch_size: int, start: int = 0) -> Iterator[list[Tensor]]:
        yield from DataLoader(InMemory(folder), batch_size=None, sampler=Endless(batch_size), **patience(workers))


class Endless:
    def __init__(self, batch_size: int):
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        while True:
            yield self.batch_size


class InMemory(Dataset):
    def __init__(self, folder: Path):
        data, self.images, at = (folder / "images").read_bytes(), [], 0
        for size in json.loads((folder / "sizes.json").read_text()):
            self.images.append(data[at : at + size])
            at += size
        self.buffer = np.empty_like(simplejpeg.decode_jpeg(self.images[0]))
        self.next = 0

    def __getitem__(self, batch_size: int) -> list[Tensor]:
        """An empty tensor of batch_size rows, after decoding as many samples."""
        for _ in range(batch_size * len(IMAGES)):
            simplejpeg.decode_jpeg(self.images[self.next], buffer=self.buffer)
            self.next = (self.next + 1) % len(self.images)
        return [torch.empty(batch_size, 0)]


RIVALS = (FolderCSV(), PlainWebDataset(), MosaicStreaming())
