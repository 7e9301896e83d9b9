"""A Ray cluster of this machine, for tests that need one."""

from __future__ import annotations

import os
import secrets
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",
    "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
    "RAY_SERVE_HANDLE_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
    "RAY_SERVE_REPLICA_AUTOSCALING_METRIC_PUSH_INTERVAL_S": "0.5",
}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """The package, with a cluster that has room for four processes of a CPU each, whatever this machine has."""
    set_here = {name: value for name, value in {**_ENVIRONMENT, "RAY_AUTH_TOKEN": secrets.token_hex(32)}.items() if name not in os.environ}
    os.environ.update(set_here)
    with warnings.catch_warnings():  # of Ray's own imports, and of what it leaves open
        warnings.simplefilter("ignore")
        ray = pytest.importorskip("ray", reason="Ray is not installed: pip install -e '.[ray]'")
        ray.init(
            num_cpus=4, object_store_memory=100_000_000, include_dashboard=False, log_to_driver=False, configure_logging=False,
            namespace="fusedrnn-tests",
        )  # fmt: skip
        try:
            yield ray
        finally:
            ray.shutdown()
            for name in set_here:
                del os.environ[name]
