"""A real Dask cluster of two processes on this machine."""

from __future__ import annotations

import dask
import pytest
from batches import accounts, harmed, joined, rebalancer, without
from distributed import Client, LocalCluster

from equipoise.optimizer.batches.run import run


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes_and_loses_only_who_kills_its_workers() -> None:
    table = accounts(12)
    with (
        # By default a task may kill four workers before it is given up.
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
        pytest.warns(RuntimeWarning, match=r"KilledWorker.*processes of our own take over") as warned,
    ):
        chunks = list(run(rebalancer().policy, harmed(table, 1, "P0011"), chunk=25, executor=client.get_executor()))
    assert [len(chunk.results) for chunk in chunks] == [5, 5, 2]
    assert sum("take over" in str(one.message) for one in warned) == 1
    results = joined(chunks).results
    assert results[~results["verified"]]["status"].to_dict() == {"P0011": "WORKER_DIED"}
    assert without(chunks, "P0011") == without(run(rebalancer().policy, table), "P0011")
