"""Whether a cluster answers and lets this account work in its namespace.

    finding = reach("configs/cluster/gpu.yaml")         # tools/doctor.py --cluster
"""

from af_pipelines.cluster import check_cluster, load_cluster
from af_pipelines.kube import ClusterAway, ClusterError, Kube
from megatron_af.config import ConfigError
from megatron_af.doctor.findings import Finding, State


def reach(path: str) -> Finding:
    """Asks once for the jobs of the cluster file's namespace; nothing is made."""
    try:
        cluster = load_cluster(path)
        if problems := check_cluster(cluster):
            return Finding(part="cluster", state=State.BROKEN, told=f"{path} cannot be used", fix="; ".join(problems))
        jobs = Kube.connect(cluster).jobs("")
    except ConfigError as error:
        return Finding(part="cluster", state=State.BROKEN, told=" ".join(str(error).split()), fix=f"correct {path}")
    except (ClusterError, ClusterAway) as error:
        fix = "see that `kubectl get trainjobs` answers in this namespace; docs/kubeflow.md"
        return Finding(part="cluster", state=State.BROKEN, told=" ".join(str(error).split()), fix=fix)
    told = f"answers; {len(jobs)} TrainJobs in the namespace {cluster.namespace}"
    return Finding(part="cluster", state=State.WORKS, told=told)
