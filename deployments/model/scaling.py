"""How many model replicas are wanted: by the rows in use and the requests that wait.

Serve's controller gets this module by value, since it need not have our code: nothing of ours is
imported here.
"""

from typing import Any

ROWS = "rows"  # what `ModelReplica.record_autoscaling_stats` calls rows in use and waiting


def by_rows(context: Any) -> tuple[float, dict[str, Any]]:
    """Return how many replicas the load needs, and no state; Serve adds its delays and bounds.

    Serve's own policy counts the calls in progress, among them those that ask a replica how it is.

    Args:
        context: ray.serve.config.AutoscalingContext; means of its window.
    """
    if not context.current_num_replicas:  # Serve starts one for the first question by itself
        return context.target_num_replicas, {}
    held = sum(context.aggregated_metrics.get(ROWS, {}).values())
    num_rows = held + context.total_queued_requests
    return num_rows / context.config.get_target_ongoing_requests(), {}
