"""The MLflow server of tests/tracking, for comparisons of runs that only a server has."""

from tests.tracking.conftest import _quiet_mlflow, server  # noqa: F401
