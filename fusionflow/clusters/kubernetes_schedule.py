"""What makes a DaskJob again and again: a CronJob, and the rights that it needs.

The CronJob's pod creates what a ConfigMap holds, with `fusionflow.submission.kubernetes`: nothing
else is needed in the image.
"""

from __future__ import annotations

import re
from typing import Any

from fusionflow.clusters.kubernetes_objects import LABELS, config_map, head
from fusionflow.clusters.kubernetes_pods import CONFIG_FOLDER, submitter_pod
from fusionflow.errors import ConfigurationError
from fusionflow.kubernetes_options import KubernetesOptions

JOB_FILE = "job.yaml"
_FIELD = r"[0-9A-Za-z*/,?-]+"
_SCHEDULE = re.compile(rf"{_FIELD}( {_FIELD}){{4}}|@(yearly|monthly|weekly|daily|hourly)")
#: Seconds for a pod to create a DaskJob, beside removing the one before.
_DEADLINE = 900
#: Seconds that a start may be late.
_LATE = 3600
_KEPT = 3
_RIGHTS = (
    ("kubernetes.dask.org", ["daskjobs"], ["get", "list", "create", "delete"]),
    ("kubernetes.dask.org", ["daskworkergroups", "daskautoscalers"], ["get", "create", "delete"]),
    ("kubernetes.dask.org", ["daskclusters"], ["get"]),
    ("", ["pods"], ["get"]),  # whether the last run's is gone
)


def scheduled(options: KubernetesOptions, schedule: str, job: str) -> list[dict[str, Any]]:
    """Return the objects that submit a run whenever a schedule says so.

    Parameters
    ----------
    options : KubernetesOptions
        Name, image and the like.
    schedule : str
        In the words of cron: ``0 2 * * *``, ``@daily``.
    job : str
        YAML documents of what is to be created: a DaskJob, and groups of workers.

    Returns
    -------
    list of dict
        ConfigMap, ServiceAccount, Role, RoleBinding, CronJob.

    Raises
    ------
    ConfigurationError
        If the schedule is none, or no namespace is named.
    """
    if options.namespace is None:
        raise ConfigurationError(
            "cluster.kubernetes.namespace is not given, and a schedule needs it: the right to "
            "create runs is that of an account of one namespace",
            "Name it, even if it is that of the current context",
        )
    if not _SCHEDULE.fullmatch(schedule):
        raise ConfigurationError(
            f"{schedule!r} is no schedule of a CronJob",
            "Write five fields (minute, hour, day, month, weekday), such as '0 2 * * *', or @daily",
        )
    name = f"{options.name}-submit"
    return [
        config_map(options, f"{options.name}-job", {JOB_FILE: job}),
        head("v1", "ServiceAccount", name, options) | {"automountServiceAccountToken": False},
        _role(options, name),
        _role_binding(options, name),
        _cron_job(options, name, schedule),
    ]


def _role(options: KubernetesOptions, name: str) -> dict[str, Any]:
    rules = [
        {"apiGroups": [group], "resources": resources, "verbs": verbs}
        for group, resources, verbs in _RIGHTS
    ]
    return head("rbac.authorization.k8s.io/v1", "Role", name, options) | {"rules": rules}


def _role_binding(options: KubernetesOptions, name: str) -> dict[str, Any]:
    subject = {"kind": "ServiceAccount", "name": name, "namespace": options.namespace}
    return head("rbac.authorization.k8s.io/v1", "RoleBinding", name, options) | {
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [subject],
    }


def _cron_job(options: KubernetesOptions, name: str, schedule: str) -> dict[str, Any]:
    words = [
        "python", "-m", "fusionflow.submission.kubernetes", f"{CONFIG_FOLDER}/{JOB_FILE}",
        "--namespace", "$(NAMESPACE)",
    ]  # fmt: skip
    pod = submitter_pod(options, words, f"{options.name}-job") | {"serviceAccountName": name}
    job = {
        "backoffLimit": 0,
        "activeDeadlineSeconds": _DEADLINE,
        "template": {"metadata": {"labels": dict(LABELS)}, "spec": pod},
    }
    return head("batch/v1", "CronJob", options.name, options) | {
        "spec": {
            "schedule": schedule,
            "concurrencyPolicy": "Forbid",
            "startingDeadlineSeconds": _LATE,
            "successfulJobsHistoryLimit": _KEPT,
            "failedJobsHistoryLimit": _KEPT,
            "jobTemplate": {"spec": job},
        }
    }
