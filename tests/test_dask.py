"""A real Dask cluster of two processes on this machine."""

from __future__ import annotations

from pathlib import Path

import dask
import pytest
from batches import accounts, harmed, joined, rebalancer, without
from distributed import Client, LocalCluster

from equipoise.optimizer.batches.run import run, write


@pytest.mark.slow
def test_a_cluster_gives_the_same_bytes_and_loses_only_who_kills_its_workers(tmp_path: Path) -> None:
    """Tables by value; and a file, of which its workers read their own rows and keep their chunks."""
    table = accounts(12)
    table.to_parquet(tmp_path / "holdings.parquet", row_group_size=17)
    with (
        # By default a task may kill four workers before it is given up.
        dask.config.set({"distributed.scheduler.allowed-failures": 0}),
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
    ):
        executor = client.get_executor()
        assert _written(tmp_path, "there", executor=executor) == _written(tmp_path, "here")
        with pytest.warns(RuntimeWarning, match=r"KilledWorker.*processes of our own take over") as warned:
            chunks = list(run(rebalancer().policy, harmed(table, 1, "P0011"), chunk=25, executor=executor))
    assert [len(chunk.results) for chunk in chunks] == [5, 5, 2]
    assert sum("take over" in str(one.message) for one in warned) == 1
    results = joined(chunks).results
    assert results[~results["verified"]]["status"].to_dict() == {"P0011": "WORKER_DIED"}
    assert without(chunks, "P0011") == without(run(rebalancer().policy, table), "P0011")


def _written(folder: Path, name: str, **options: object) -> dict[str, bytes]:
    """All bytes of a batch from file to files, with its checkpoint."""
    out = folder / name
    paths = {"results": out / "results.csv", "orders": out / "orders.parquet"}
    write(rebalancer().policy, folder / "holdings.parquet", checkpoint=out / "kept", chunk=25, **paths, **options)
    return {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
