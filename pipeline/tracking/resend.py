"""Sending a run folder to MLflow after training: what is missing after an outage, a crash or a later command."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from pipeline.core import terminal
from pipeline.core.errors import UserError
from pipeline.core.secrets import without_secrets
from pipeline.runs import records
from pipeline.runs.folder import METRICS
from pipeline.tracking import client, sync
from pipeline.tracking.artifacts import missing_artifacts
from pipeline.tracking.sent import locked, read_sent
from pipeline.tracking.tracker import OFF

logger = logging.getLogger(__name__)


def resend_all(folders: Sequence[Path]) -> int:
    """Send each run and print the result; returns the number of runs that could not be sent.

    Raises the UserError of a damaged run if it is the only one.
    """
    client.quiet_environment()
    failed = 0
    for run_dir in folders:
        try:
            print(f"{run_dir}: {resend(run_dir)}", flush=True)
        except UserError as error:
            if len(folders) == 1:
                raise
            failed += 1
            logger.error("%s: not sent: %s", run_dir, error)
        except Exception as error:  # any error of the server or its client
            failed += 1
            uri = without_secrets(client.tracking_uri(run_dir))
            logger.error("%s: not sent, MLflow at %s: %s", run_dir, uri, client.reason(error))
    return failed


def resend(run_dir: Path) -> str:
    """Send one run; returns the result as text."""
    with locked(run_dir) as mine:
        if not mine:
            return "skipped: its training is syncing it now"
        record = records.read_record(run_dir)
        assert record is not None
        died = record.attempts[-1].state == "RUNNING" and not records.alive(run_dir, record.attempts[-1])
        if died:
            record = records.close_dead(record, records.read_lines(run_dir / METRICS)[0])
            records.write_record(run_dir, record)
        with terminal.console().status(f"{run_dir} -> {without_secrets(client.tracking_uri(run_dir))}"):
            before = read_sent(run_dir)
            count = sync.sync(run_dir)
        sent = read_sent(run_dir)
        assert sent is not None
        if before and before.uri == sent.uri and before.run_id != sent.run_id:
            logger.info(
                "%s: MLflow at %s no longer has run %s: sending everything to a new one",
                run_dir,
                sent.uri,
                before.run_id,
            )
        state = record.attempts[-1].state.lower()
        for name in missing_artifacts(run_dir, record, sent) if state != "running" else ():
            logger.warning("%s: %s should be sent with the run, but no longer exists", run_dir, name)
        return f"{count:,} values sent, {state}{' (it died)' if died else ''}, MLflow run {sent.run_id} at {sent.uri}"


def send(folder: Path) -> None:
    """Send what a command has added to a run folder, unless MLflow is off; a failure only logs a warning."""
    if os.environ.get(OFF) == "off":
        return
    client.quiet_environment()
    try:
        resend(folder)
    except Exception as error:  # any error of the server or its client
        logger.warning("%s was not sent to MLflow (%s): run vit sync %s", folder, client.reason(error), folder)
