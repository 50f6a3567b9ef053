"""Resumed trainings that end, bit by bit on the CPU, as if they had not been interrupted.

Whatever is random is made to depend on the seed and on where in the training it happens. So no generator's state has to
travel in a checkpoint, no matter how many workers load the data, and the images that have been trained on already need
not be loaded again.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import NamedTuple

import numpy as np
import torch
from mmengine import dist
from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop, Runner
from mmengine.runner.loops import _InfiniteDataloaderIterator
from torch.utils.data import DataLoader, Dataset


def prepare(runner: Runner) -> None:
    """Make ``runner`` train so. Call it before :meth:`Runner.train`."""
    cfg = runner._train_dataloader
    if isinstance(cfg, dict):
        runner._train_dataloader = numbered_loader(runner, cfg)
        runner.register_hook(_ExactResumeHook(cfg))


def numbered_loader(runner: Runner, cfg: dict, first: int = 0, skip: int = 0) -> DataLoader:
    """Return the loader of ``cfg``, whose batches count on from ``first``, after leaving ``skip`` of them out."""
    different = runner._randomness_cfg.get('diff_rank_seed', False)
    loader = runner.build_dataloader(cfg, seed=runner.seed, diff_rank_seed=different)
    batches = NumberedBatches(loader.batch_sampler, (runner.seed, dist.get_rank()), first, skip)
    dataset = loader.dataset if isinstance(loader.dataset, SeededDataset) else SeededDataset(loader.dataset)
    # Past the loader's refusal to have them set, which is there for those who have begun to load.
    vars(loader).update(dataset=dataset, batch_sampler=batches)
    return loader


class _ExactResumeHook(Hook):
    priority = 'LOWEST'  # validation needs the other hooks to be ready

    def __init__(self, loader_cfg: dict) -> None:
        self._loader_cfg = loader_cfg

    def before_train(self, runner: Runner) -> None:
        """Take up a resumed training: its data where it stopped, and the validation that it did not come to."""
        if runner.iter == 0:
            return
        loop = runner.train_loop
        by_iteration = isinstance(loop, IterBasedTrainLoop)
        endless = by_iteration and isinstance(loop.dataloader.sampler, InfiniteSampler)
        # Built anew because the old one is ahead already, and the seed may have come from the checkpoint.
        loop.dataloader = numbered_loader(
            runner, dict(self._loader_cfg, dataset=loop.dataloader.dataset),
            first=0 if by_iteration and not endless else runner.iter, skip=runner.iter if endless else 0)
        if by_iteration:
            loop.dataloader_iterator = (
                _FromHere(loop.dataloader, runner.iter) if endless else _InfiniteDataloaderIterator(loop.dataloader))
        if _validation_due(runner):
            runner.val_loop.run()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: object = None) -> None:
        """Set what the forward pass draws from, as dropout does."""
        torch.manual_seed(_seed(runner.seed, dist.get_rank(), runner.iter))


class _FromHere(_InfiniteDataloaderIterator):
    """The batches of a loader that goes on where the training stopped, for a loop that is about to leave ``done`` out.

    mmengine 0.10.7 takes so many and throws them away, onedl-mmengine calls ``skip_iter``.
    """

    def __init__(self, loader: DataLoader, done: int) -> None:
        self._to_throw_away = 0 if hasattr(_InfiniteDataloaderIterator, 'skip_iter') else done
        super().__init__(loader)

    def __next__(self) -> object:
        if self._to_throw_away:
            self._to_throw_away -= 1
            return None
        return super().__next__()

    def skip_iter(self, done: int) -> None:
        """Leave nothing out: the loader has done so."""


def _validation_due(runner: Runner) -> bool:
    """Return whether the training stopped just before a validation; mmengine saves its checkpoints there."""
    loop = runner.train_loop
    by_iteration = isinstance(loop, IterBasedTrainLoop)
    done, end = (loop.iter, loop.max_iters) if by_iteration else (loop.epoch, loop.max_epochs)
    return runner.val_loop is not None and done >= loop.val_begin and (done % loop.val_interval == 0 or done == end)


class _Place(NamedTuple):
    """The index of an image in the dataset, and where in the training it is asked for."""

    index: int
    place: tuple[int, ...]


class NumberedBatches:
    """A batch sampler that tells, with each index, its place in the training."""

    def __init__(self, batch_sampler: Sequence[list[int]], seed: tuple[int, int], first: int, skip: int) -> None:
        self._batch_sampler, self._seed, self._next, self._skip = batch_sampler, seed, first, skip
        self.sampler = batch_sampler.sampler  # mmengine sets its epoch

    def __iter__(self) -> Iterator[list[_Place]]:
        for batch in islice(self._batch_sampler, self._skip, None):
            self._next += 1
            yield [_Place(index, (*self._seed, self._next, i)) for i, index in enumerate(batch)]

    def __len__(self) -> int:
        return len(self._batch_sampler)


class SeededDataset(Dataset):
    """A dataset whose augmentation of an image depends only on the place in the training."""

    def __init__(self, dataset: Dataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: _Place | int) -> object:
        if isinstance(item, _Place):
            if getattr(self.dataset, 'random', True):
                _seed(*item.place)
            item = item.index
        return self.dataset[item]

    def __getitems__(self, items: Sequence[_Place | int]) -> list:
        """Return a whole batch, with the images that the dataset puts beside it. Called by torch's data loader."""
        batch = [self[item] for item in items]
        beside = getattr(self.dataset, 'beside', None)
        if beside is None:
            return batch
        if isinstance(items[0], _Place):
            _seed(*items[0].place[:-1], len(items))
        return batch + beside(len(items))

    def __getattr__(self, name: str) -> object:
        if name == 'dataset':  # while it is unpickled
            raise AttributeError(name)
        return getattr(self.dataset, name)


def _seed(*place: int) -> int:
    """Set the generators of the CPU to numbers that belong to that place only, and return their seed."""
    seed = int(np.random.SeedSequence(place).generate_state(1)[0])
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)  # torch.manual_seed also asks for devices, which takes longer than a crop
    return seed
