"""What Dagster is told when a stage cannot go on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import dagster as dg

from e2i_dagster.errors import ConfigError, E2IError, InputError, UnavailableError, VerdictError

if TYPE_CHECKING:
    from e2i_dagster.versions.ledger import State


def refusal(error: E2IError) -> dg.Failure:
    """``error`` as a failure that is not tried again, with what it knows for the command that launched the run."""
    return dg.Failure(str(error), metadata={"error": error.to_record()}, allow_retries=False)


@contextmanager
def failures_recorded(record: "Callable[[State, str], None]") -> Iterator[None]:
    """Record the state that an error leaves a stage in; say to Dagster what may be retried."""
    try:
        yield
    except VerdictError as error:
        record("blocked", str(error))
        raise refusal(error) from error
    except (ConfigError, InputError) as error:
        record("failed", str(error))
        raise refusal(error) from error
    except UnavailableError as error:
        # When it is the warehouse that does not answer, the state cannot be recorded in it.
        with suppress(UnavailableError):
            record("unavailable", str(error))
        raise dg.RetryRequested(max_retries=2, seconds_to_wait=2) from error
    except dg.Failure:
        raise
    except E2IError as error:
        record("failed", str(error))
        raise refusal(error) from error
    except Exception as error:
        record("failed", f"{type(error).__name__}")
        raise
