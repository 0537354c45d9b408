"""Services for tests that ask what they answer, not how many processes answer."""

from e2i_dagster.config.serving import ServingPolicy


def one_worker() -> ServingPolicy:
    """The policy with one worker to a service: each is a process that takes seconds to start."""
    policy = ServingPolicy.load()
    return policy.model_copy(update={"deployment": policy.deployment.model_copy(update={"workers": 1})})
