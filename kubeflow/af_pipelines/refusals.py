"""What an API server's refusal means, and the next step: four kinds of 403 share one reason and differ in their text.

    raise ClusterError(explain(error, cluster), error.status)

The texts are those of Kubernetes 1.36 and of Trainer 2.3's and JobSet 0.12's webhooks (tests/fixtures/kubernetes).
"""

import json

from kubernetes.client import ApiException

from af_pipelines.cluster import ClusterConfig


def explain(error: ApiException, cluster: ClusterConfig) -> str:
    """Cause and next step for a refusal of the API server."""
    message = message_of(error)
    where = f"in namespace {cluster.namespace}"
    if error.status == 401:
        return f"the cluster refuses the login, its token has expired or is wrong ({message}): log in again"
    if "must be created before" in message or "unsupported runtime" in message.lower():
        return (
            f"the cluster has no training runtime {cluster.runtime!r} ({message}): apply kubeflow/manifests, or name "
            "one of `kubectl get clustertrainingruntimes` as `runtime` in the cluster file"
        )
    if "exceeded quota" in message:
        return f"the quota {where} is used up ({message}): free or raise it, or ask for less in the cluster file"
    if "ValidatingAdmissionPolicy" in message or "denied the request" in message:
        return (
            f"a rule of this cluster forbids the job ({message}): keep the rule in the cluster file, or ask whoever "
            "runs the cluster about it"
        )
    if error.status == 403 and "system:anonymous" in message:
        return f"the cluster sees no login at all ({message}): log in, or name a user in the kubeconfig's context"
    if error.status == 403:
        return (
            f"the account is not allowed to do this, or namespace {cluster.namespace!r} or Kubeflow Trainer does not "
            f"exist ({message}): apply kubeflow/manifests/base/namespaced/rbac.yaml {where}, or use the service "
            f"account {cluster.service_account!r}"
        )
    if error.status == 404 and "namespace" in message.lower():
        return f"there is no namespace {cluster.namespace!r} ({message}): create it, or correct `namespace`"
    if error.status == 404:
        return (
            f"the cluster does not know TrainJobs of this version ({message}): install Kubeflow Trainer 2.2 or later "
            "(docs/kubeflow.md)"
        )
    return f"the cluster answers {error.status} {error.reason}: {message}"


def message_of(error: ApiException) -> str:
    """The sentence in the answer's body, which is a Status, plain text or nothing."""
    try:
        return str(json.loads(error.body)["message"])
    except (TypeError, ValueError, KeyError, RecursionError):
        return " ".join(str(error.body or error.reason).split())
