"""What ranks tell each other through host memory waits for one that works alone."""

from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist

from mlcore.base import distributed
from mlcore.base.distributed import any_rank, barrier, broadcast_object, gather_objects, start_world


def test_ranks_wait_a_day_for_one_that_works_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    start, groups = dist.init_process_group, list[Any]()

    def alone(backend: str) -> None:  # a group of one, in this process
        start(backend, store=dist.HashStore(), rank=0, world_size=1)

    def note(function: str) -> None:
        real = getattr(dist, function)
        monkeypatch.setattr(dist, function, lambda *args, **more: (groups.append(more["group"]), real(*args, **more)))

    monkeypatch.setattr(dist, "init_process_group", alone)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with start_world("cpu"):
        for function in ("barrier", "broadcast_object_list", "all_gather_object", "all_reduce"):
            note(function)
        barrier()
        assert broadcast_object("value") == "value"
        assert gather_objects("value") == ["value"]
        assert any_rank(flag=True)
        waits = [group._get_backend(torch.device("cpu")).options._timeout for group in groups]
        assert waits == [timedelta(days=1)] * 4
    assert distributed._host is None
