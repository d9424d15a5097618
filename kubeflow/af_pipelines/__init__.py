"""The curriculum as a pipeline: the same steps on a laptop and on a Kubeflow cluster.

python -m af_pipelines run --config configs/demo.yaml                                     # here
python -m af_pipelines submit --config configs/af2_3b.yaml --cluster configs/cluster/gpu.yaml
"""
