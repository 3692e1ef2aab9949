"""The searches that suites measure, by network, and with them other choices of peers."""

from bench import cnn_peers, rnn_peers
from bench.cnn_peers import CNN
from bench.rnn_peers import RNN

WORKLOADS = {workload.network: workload for workload in (CNN, RNN)}
FRONTIERS = {"cnn": cnn_peers.MEMORY, "rnn": rnn_peers.MEMORY}
MEASURED = {**WORKLOADS, **{workload.network: workload for workload in FRONTIERS.values()}}
